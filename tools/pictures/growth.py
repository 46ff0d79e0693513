"""Draws docs/growth.svg: how the daemon's cost and memory grow, from what `cargo bench --bench growth` measured.

Usage: python3 tools/pictures/growth.py [FILE]   (default: target/bench-growth.json)
Needs: pip install matplotlib

A row for each curve, a picture for each quantity. Axes are logarithmic where more than a decade is on them; beside each
title stands what the benchmark makes of the curve.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot
from matplotlib.ticker import FuncFormatter

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
ORDER = ["bodies", "streams", "routes", "keys", "series", "rows"]
# Colours that can be read on white and on black.
BLUE, ORANGE, GREY = "#3b82f6", "#e0852b", "#858d98"
COLOR = {"daemon": BLUE, "nginx": ORANGE}
COLUMNS = 4
WIDTH, HEIGHT = 13.0, 2.6


def short(value, _=None):
    for size, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def pictures(curve):
    """The curve's lines by what they say, in their order."""
    found = {}
    for series in curve["series"]:
        found.setdefault(series["what"], []).append(series)
    return list(found.items())


def draw(axes, curve, what, lines):
    for line in lines:
        # Nothing has no logarithm; it stands a decade before the first that is something.
        known = [x for x, _ in line["points"] if x > 0]
        xs = [x or min(known) / 10 for x, _ in line["points"]]
        ys = [y for _, y in line["points"]]
        axes.plot(xs, ys, marker="o", markersize=4, linewidth=1.6, color=COLOR[line["whose"]], label=line["whose"])
        if line["points"][0][0] == 0:
            axes.annotate("0", (xs[0], ys[0]), xytext=(0, 6), textcoords="offset points", color=GREY, fontsize=8)
    ys = [y for line in lines for _, y in line["points"]]
    axes.set_xscale("log")
    if max(ys) > 10 * min(ys) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(ys) * 1.25)
    own = next(line for line in lines if line["whose"] == "daemon")
    axes.set_title(what, loc="left", color=GREY, fontsize=10, fontweight="bold")
    # Of what is neither flat nor linear, the exponent alone, which has room beside the title.
    axes.set_title(own["shape"].split(":")[0].split("as ")[-1], loc="right", color=BLUE, fontsize=9)
    axes.set_xlabel(curve["against"], color=GREY, fontsize=8)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=GREY, loc="lower right")
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.minorticks_off()
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def main():
    source = sys.argv[1] if len(sys.argv) > 1 else f"{ROOT}/target/bench-growth.json"
    if not os.path.exists(source):
        raise SystemExit("there are no figures: run `cargo bench --bench growth` first")
    with open(source) as file:
        curves = sorted(json.load(file), key=lambda curve: ORDER.index(curve["name"]))
    plot.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "growth"})
    figure, grid = plot.subplots(len(curves), COLUMNS, figsize=(WIDTH, HEIGHT * len(curves)), squeeze=False)
    for curve, row in zip(curves, grid):
        found = pictures(curve)
        for axes, picture in zip(row, found):
            draw(axes, curve, *picture)
        for axes in row[len(found) :]:
            axes.set_visible(False)
    figure.tight_layout(h_pad=1.8)
    figure.savefig(f"{ROOT}/docs/growth.svg", transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
