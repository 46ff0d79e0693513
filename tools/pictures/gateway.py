"""Draws docs/bench-gateway.svg: what a request costs in each gateway, from the figures of `make bench-gateway`.

Usage: python3 tools/pictures/gateway.py [FIGURES]   (default: target/bench-gateway.json)
Needs: pip install matplotlib

Bars are medians of the rounds, with the lowest and the highest round as whiskers; the axes are logarithmic, since the gateways
differ by orders of magnitude. Nothing in the picture is made up.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plot

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
# Colours that can be read on white and on black.
TEXT, OURS, THEIRS = "#858d98", "#3b82f6", "#e0852b"
PANELS = [("1 kB", "1 kB"), ("1 kB streamed", "1 kB, streamed"), ("100 kB", "100 kB"), ("1 MB", "1 MB")]
FAINT = 0.35


def shown(microseconds):
    if microseconds >= 1000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds:.0f} µs"


def draw_bars(axes, title, key, arms):
    medians = [arm["cpu_us"][key]["median"] for arm in arms]
    rounds = [arm["cpu_us"][key]["rounds"] for arm in arms]
    colors = [OURS if arm["name"].startswith("mlx-manager") else THEIRS for arm in arms]
    places = range(len(arms))
    axes.barh(places, medians, color=colors, height=0.62)
    whiskers = [[median - min(values) for median, values in zip(medians, rounds)],
                [max(values) - median for median, values in zip(medians, rounds)]]
    axes.errorbar(medians, places, xerr=whiskers, fmt="none", ecolor=TEXT, elinewidth=0.8, capsize=2)
    for place, median, values in zip(places, medians, rounds):
        axes.annotate(shown(median), (max(values), place), xytext=(4, 0), textcoords="offset points", color=TEXT,
                      fontsize=8, va="center")
    axes.set_xscale("log")
    lowest, highest = min(medians), max(medians)
    # Room for the longest bar's own figure.
    axes.set_xlim(lowest / 2.5, highest * (highest / lowest) ** 0.3 * 1.5)
    axes.set_title(title, color=TEXT, fontsize=9, loc="left")
    axes.tick_params(colors=TEXT, labelsize=8, length=0)
    axes.xaxis.set_major_formatter(lambda value, _: shown(value))
    axes.xaxis.set_minor_locator(plot.NullLocator())
    axes.grid(axis="x", color=TEXT, alpha=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main(figures):
    with open(figures) as file:
        report = json.load(file)
    arms = [arm for arm in report["arms"] if arm["cpu_us"]]
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "gateway", "font.family": "sans-serif"}
    figure, panels = plot.subplots(2, 2, figsize=(10, 1.9 + 0.46 * len(arms)), sharey=True, facecolor="none")
    for axes, (key, title) in zip(panels.flat, PANELS):
        axes.set_facecolor("none")
        draw_bars(axes, title, key, arms)
    panels[0, 0].set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    panels[0, 0].invert_yaxis()
    figure.suptitle("Processor time of the gateway per request, body of 1 kB, 100 kB and 1 MB (logarithmic)", color=TEXT,
                    fontsize=11, x=0.012, ha="left")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    told = (f"{report['machine']}; {report['date']}; {report['place']}\n{versions}\n"
            f"medians of {report['rounds']} rounds, lowest and highest as whiskers; a streamed answer has {report['chunks']} chunks")
    figure.text(0.012, 0.012, told, color=TEXT, fontsize=7.5, va="bottom", linespacing=1.5)
    figure.tight_layout(rect=(0, 0.1, 1, 0.98))
    figure.savefig(f"{ROOT}/docs/bench-gateway.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{ROOT}/target/bench-gateway.json")
