#!/usr/bin/env python3
"""Draws reports of `shoal bench --url … --json` as one SVG: tokens a second of all users and of each, time to the first
token and between tokens (median, and the 99th percentile dotted), by number of users.

    perf/plot_bench.py OUT.svg NAME=report.json [NAME=report.json …]
"""

import json
import math
import sys
from xml.sax.saxutils import escape

PANELS = [("Tokens/s, all users", "tokens_per_s", None), ("Tokens/s of each user", "tokens_per_s_per_user", None),
          ("First token, ms (dotted: p99)", "ttft_p50_ms", "ttft_p99_ms"), ("Between tokens, ms (dotted: p99)", "tpot_p50_ms", "tpot_p99_ms")]
COLORS = ["#1f6feb", "#d1662c", "#2e8b57", "#8957e5", "#b08800", "#cf222e"]
WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 300, 190, 60, 50, 80, 70  # of a panel, and around it


def ticks(low, high):
    """Powers of ten and what lies between them, 1-2-5, within the range."""
    steps = [m * 10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    return inside if len(inside) <= 7 else [step for step in inside if str(f"{step:e}")[0] == "1"]


def panel(x0, y0, title, series):
    """One diagram, both axes logarithmic. series: (color, dotted, [(users, value)…])."""
    points = [point for _, _, line in series for point in line if point[1] > 0]
    users = sorted({point[0] for point in points})
    low, high = min(p[1] for p in points) / 1.2, max(p[1] for p in points) * 1.2
    def x(value):
        span = math.log(users[-1] / users[0]) or 1
        return x0 + WIDTH * math.log(value / users[0]) / span
    def y(value):
        return y0 + HEIGHT * (1 - math.log(value / low) / math.log(high / low))
    out = [f'<text x="{x0}" y="{y0 - 10}" class="title">{escape(title)}</text>',
           f'<rect x="{x0}" y="{y0}" width="{WIDTH}" height="{HEIGHT}" class="frame"/>']
    for tick in ticks(low, high):
        out += [f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>',
                f'<text x="{x0 - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>']
    out += [f'<text x="{x(n):.1f}" y="{y0 + HEIGHT + 16}" text-anchor="middle">{n}</text>' for n in users]
    for color, dotted, line in series:
        path = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in line if value > 0)
        dash = ' stroke-dasharray="3 3"' if dotted else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        if not dotted:
            out += [f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>' for n, value in line if value > 0]
    return out


def draw(reports):
    """reports: {name: report}. The SVG's text."""
    width, height = 2 * (LEFT + WIDTH) + GAP_X, TOP + 2 * (HEIGHT + GAP_Y) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           "<style>text { fill: #333 } .title { font-weight: bold } .frame { fill: none; stroke: #999 } "
           ".grid { stroke: #ddd }</style>", '<rect width="100%" height="100%" fill="white"/>']
    at = LEFT
    for color, name in zip(COLORS, reports):
        out += [f'<rect x="{at}" y="10" width="12" height="12" fill="{color}"/>', f'<text x="{at + 18}" y="21">{escape(name)}</text>']
        at += 40 + 8 * len(name)
    for i, (title, field, tail) in enumerate(PANELS):
        series = []
        for color, report in zip(COLORS, reports.values()):
            rows = report["results"]
            series.append((color, False, [(row["concurrency"], row[field]) for row in rows]))
            if tail:
                series.append((color, True, [(row["concurrency"], row[tail]) for row in rows]))
        out += panel(LEFT + i % 2 * (WIDTH + GAP_X), TOP + i // 2 * (HEIGHT + GAP_Y) + 10, title, series)
    out.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">users at once</text></svg>')
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) < 3 or not all("=" in argument for argument in sys.argv[2:]):
        sys.exit(__doc__)
    named = (argument.split("=", 1) for argument in sys.argv[2:])
    reports = {name: json.load(open(path)) for name, path in named}
    with open(sys.argv[1], "w") as file:
        file.write(draw(reports))


if __name__ == "__main__":
    main()
