"""The chart of the bench: a bar for each ratio to nginx, as SVG. Owns its looks and nothing else.

The scale is logarithmic: half and double are equally far from 1. Colours follow the reader's theme.
"""

import html
import math

LEFT, RIGHT, LINE, TOP = 430, 70, 22, 40
MARGIN = 30  # what the longest label needs more
WIDTH, SCALE = 900, 4  # the axis goes from 1/16 to 16
STYLE = """
text { font: 13px sans-serif; fill: #1f2328 } .axis { stroke: #8c959f } .grid { stroke: #d0d7de }
.yes { fill: #2da44e } .no { fill: #cf222e } .none { fill: #6e7781 } .small { font-size: 11px }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .axis { stroke: #8b949e } .grid { stroke: #30363d } .none { fill: #8b949e }
}"""


def place(ratio):
    """Where a ratio is on the axis."""
    share = (max(-SCALE, min(SCALE, math.log2(max(ratio, 1e-9)))) + SCALE) / (2 * SCALE)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def draw(rows):
    """The chart of these rows."""
    height = TOP + LINE * len(rows) + 30
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN} 0 {WIDTH + MARGIN} {height}" '
             f'width="{WIDTH + MARGIN}" height="{height}" role="img"><style>{STYLE}</style>',
             f'<text x="8" y="20">ours / nginx: times, milliseconds and CPU are better below 1, '
             f'throughput and requests above</text>']
    for power in range(-SCALE, SCALE + 1):
        x = place(2.0 ** power)
        kind = "axis" if power == 0 else "grid"
        label = f"{2 ** power:g}" if power >= 0 else f"1/{2 ** -power}"
        parts.append(f'<line class="{kind}" x1="{x:.0f}" x2="{x:.0f}" y1="{TOP}" y2="{height - 20}"/>'
                     f'<text class="small" x="{x:.0f}" y="{height - 6}" text-anchor="middle">{label}'
                     '</text>')
    for at, row in enumerate(rows):
        parts.append(bar(row, TOP + LINE * at))
    return "\n".join([*parts, "</svg>\n"])


def bar(row, y):
    """A bar from 1 to the ratio; its colour says whether the aims hold."""
    verdicts = [good for _, good in row.aims if good is not None]
    kind = "none" if not verdicts else "yes" if all(verdicts) else "no"
    begin, end = sorted([place(1), place(row.ratio)])
    label = html.escape(f"{row.work}: {row.figure}")
    return (f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{label}</text>'
            f'<rect class="{kind}" x="{begin:.0f}" y="{y + 4}" width="{max(2, end - begin):.0f}" '
            f'height="14"/><text class="small" x="{WIDTH - RIGHT + 8}" y="{y + 15}">'
            f'{row.ratio:.2f}</text>')
