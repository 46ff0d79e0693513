"""Draws docs/dashboards/*.png: the dashboards' panels, from the answers of a real Prometheus.

Usage: python3 tools/pictures/dashboards.py [SECONDS]   (default: 120, the time that is shown)
Needs: pip install matplotlib

It runs a daemon under the synthetic load of tests/observe, asks Prometheus what the panels of dashboards/*.json ask, and
draws each panel in the place that its dashboard gives it. Nothing in the pictures is made up.
"""

import glob
import json
import math
import os
import re
import sys
import time

import matplotlib
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plot
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
sys.path.insert(0, f"{ROOT}/tests/observe")
from stack import Stack, binary, prometheus, resolved  # noqa: E402

PAGE, CARD, TEXT, GREY, NUMBER = "#111217", "#181b1f", "#ccccdc", "#8e8e9e", "#6e9fff"
COLORS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#5794f2", "#37872d", "#fade2a", "#e0b400"]
# Inches of a cell of Grafana's grid, whose width is 24.
CELL_WIDTH, CELL_HEIGHT, DPI = 0.5, 0.32, 90


def steps(value, units):
    """`value` in the largest of the units, (size, name) from large to small, that leaves 1 or more of it."""
    size, name = next(((size, name) for size, name in units if abs(value) >= size), units[-1])
    return f"{value / size:.3g}{name}"


def shown(value, unit):
    if unit == "s":
        return steps(value, [(60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs")]) if value else "0 s"
    if unit == "bytes":
        return steps(value, [(2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")])
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "currencyUSD":
        return f"${value:.3g}"
    suffix = {"reqps": " req/s", "cps": " /s", "recps": " rec/s", "rowsps": " rows/s"}.get(unit, "")
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else suffix
    number = steps(value, [(1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")]) if abs(value) >= 1000 else f"{value:.3g}"
    return number + suffix


def legend(pattern, labels):
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), pattern).strip() or "value"


def lines_of(panel, answers):
    """Every line of the panel with its name, the highest first."""
    lines = []
    for target in panel["targets"]:
        for labels, points in answers[target["expr"]]:
            lines.append((legend(target["legendFormat"], labels), points))
    return sorted(lines, key=lambda line: -max((v for _, v in line[1] if not math.isnan(v)), default=0))


def draw_stat(axes, panel, answers):
    lines = lines_of(panel, answers)
    value = lines[0][1][-1][1] if lines else math.nan
    if panel["title"] == "Build":
        text, size = lines[0][0].split()[0], 20
    else:
        text, size = "-" if math.isnan(value) else shown(value, panel["fieldConfig"]["defaults"]["unit"]), 20
    axes.text(0.5, 0.38, text, color=NUMBER, fontsize=size, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def draw_lines(axes, panel, answers, start, seconds):
    field = panel["fieldConfig"]["defaults"]
    lines = lines_of(panel, answers)
    stacked = field["custom"]["stacking"]["mode"] == "normal"
    times = sorted({at for _, points in lines for at, _ in points})
    below = [0.0] * len(times)
    for index, (name, points) in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        values = dict(points)
        # Where a line has nothing to say it has a gap, and adds nothing to those above it.
        tops = [low + values.get(at, math.nan) for at, low in zip(times, below)]
        xs = [at - start for at in times]
        axes.plot(xs, tops, color=color, linewidth=1.1, label=name)
        axes.fill_between(xs, below, tops, color=color, alpha=0.28 if stacked else 0.05, linewidth=0)
        if stacked:
            below = [low if math.isnan(top) else top for low, top in zip(below, tops)]
    words = {int(number): word["text"] for mapping in field.get("mappings", []) for number, word in mapping["options"].items()}
    top = axes.get_ylim()[1]
    axes.set_ylim(0, field.get("max", top if top > 0.06 or field["unit"] in ("s", "currencyUSD") else 1))
    axes.set_xlim(0, seconds)
    if words:
        axes.set_yticks(list(words), list(words.values()))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, field["unit"])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{int(at) // 60}:{int(at) % 60:02}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=GREY, labelsize=7, length=0)
    axes.grid(color="#ffffff", alpha=0.07, linewidth=0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    if lines:
        # Two lines of names fit below the picture.
        columns = (2 if max(len(name) for name, _ in lines[:6]) > 16 else 3) * panel["gridPos"]["w"] // 8
        axes.legend(
            *[items[: 2 * columns] for items in axes.get_legend_handles_labels()], loc="upper left", bbox_to_anchor=(-0.08, -0.1),
            ncols=columns, fontsize=6.5, frameon=False, labelcolor=TEXT, handlelength=1, columnspacing=1, borderpad=0,
        )


def draw(dashboard, answers, start, seconds, path):
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    width, height = 24 * CELL_WIDTH, rows * CELL_HEIGHT + 0.5
    figure = plot.figure(figsize=(width, height), facecolor=PAGE)
    figure.text(0.012, 1 - 0.3 / height, dashboard["title"], color=TEXT, fontsize=13, weight="bold", va="center")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, right = place["x"] / 24, (place["x"] + place["w"]) / 24
        top = 1 - (0.5 + place["y"] * CELL_HEIGHT) / height
        bottom = 1 - (0.5 + (place["y"] + place["h"]) * CELL_HEIGHT) / height
        if panel["type"] == "row":
            figure.text(left + 0.012, (top + bottom) / 2, panel["title"], color=TEXT, fontsize=9, va="center")
            continue
        gap = 0.004
        card = plot.Rectangle(
            (left + gap, bottom + gap * width / height), right - left - 2 * gap, top - bottom - 2 * gap * width / height,
            facecolor=CARD, edgecolor="#2b2f36", linewidth=0.6, transform=figure.transFigure, zorder=-1,
        )
        figure.add_artist(card)
        figure.text(left + 0.011, top - 0.22 / height, panel["title"], color=TEXT, fontsize=8.5, va="center")
        if panel["type"] == "stat":
            draw_stat(figure.add_axes((left, bottom, right - left, top - bottom)), panel, answers)
        else:
            # Room for what is written beside the axis.
            field = panel["fieldConfig"]["defaults"]
            wide = 0.06 if "mappings" in field or field["unit"] not in ("s", "short", "percentunit") else 0.045
            box = (left + wide, bottom + 0.62 / height, right - left - wide - 0.015, top - bottom - 1.0 / height)
            axes = figure.add_axes(box, facecolor=CARD)
            draw_lines(axes, panel, answers, start, seconds)
    figure.savefig(path, dpi=DPI, facecolor=PAGE)
    plot.close(figure)
    # Some colours are enough, and make a small file.
    Image.open(path).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)


def main(seconds):
    dashboards = {}
    for path in sorted(glob.glob(f"{ROOT}/dashboards/*.json")):
        with open(path) as file:
            dashboards[os.path.basename(path).removesuffix(".json")] = json.load(file)
    answers = {}
    with Stack(binary(), prometheus()) as stack:
        stack.start_load()
        time.sleep(20 + seconds)
        end = time.time() - 2
        for dashboard in dashboards.values():
            for panel in dashboard["panels"]:
                for target in panel.get("targets", []):
                    expression = resolved(target["expr"], rate="10s")
                    answers[target["expr"]] = stack.query_range(expression, end - seconds, end, 1)
    os.makedirs(f"{ROOT}/docs/dashboards", exist_ok=True)
    for name, dashboard in dashboards.items():
        draw(dashboard, answers, end - seconds, seconds, f"{ROOT}/docs/dashboards/{name}.png")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)
