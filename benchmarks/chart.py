"""The figures as horizontal bars, in an SVG with its own background that follows the reader's colour scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from figures import Figure
from report import OURS, capitalized, number

WIDTH, MARGIN, GUTTER = 900, 24, 28
ROW, TITLE = 22, 46
LABEL, VALUE = 172, 62  # room beside the bars, for names and for values
CUT = 24  # from the end of a bar that is too long to the mark of that
COLUMN = (WIDTH - 2 * MARGIN - GUTTER) // 2

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.ground { fill: #ffffff; stroke: #d1d9e0; } .cut { fill: #ffffff; }
.title { font-size: 14px; font-weight: 600; }
.note { fill: #59636e; }
.ours { fill: #0969da; } .bare { fill: #9198a1; } .peer { fill: #d4a72c; }
.range { stroke: #1f2328; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .ground { fill: #0d1117; stroke: #3d444d; } .cut { fill: #0d1117; }
  .note { fill: #9198a1; }
  .ours { fill: #4493f8; } .bare { fill: #656c76; } .peer { fill: #d29922; }
  .range { stroke: #f0f6fc; }
}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure's bars; ``note`` states which direction is better. Bars longer than ``most`` are cut."""

    figures: Sequence[Figure]
    note: str
    most: float = float("inf")

    @property
    def height(self) -> int:
        return TITLE + ROW * len(self.figures)


def draw(title: str, panels: Sequence[Panel]) -> str:
    """Lay the panels out in two columns, each below the shorter column so far."""
    ends = [MARGIN, MARGIN]
    parts: list[str] = []
    for panel in panels:
        column = ends.index(min(ends))
        parts.append(_panel(panel, MARGIN + column * (COLUMN + GUTTER), ends[column]))
        ends[column] += panel.height + GUTTER
    height = max(ends) - GUTTER + MARGIN
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, x: int, y: int) -> str:
    first = panel.figures[0]
    most = min(panel.most, max(max(figure.values) for figure in panel.figures))
    scale = (COLUMN - LABEL - VALUE) / most
    parts = [
        f'<text class="title" x="{x}" y="{y + 14}">{escape(capitalized(first.name))}</text>',
        f'<text class="note" x="{x}" y="{y + 32}">{escape(first.unit)}; {escape(panel.note)}</text>',
        *(_bar(figure, x, y + TITLE + ROW * row, scale, most) for row, figure in enumerate(panel.figures)),
    ]
    return "\n".join(parts)


def _bar(figure: Figure, x: int, y: int, scale: float, most: float) -> str:
    left = x + LABEL
    length = max(1.0, min(figure.median, most) * scale)
    low, high = (left + min(value, most) * scale for value in (min(figure.values), max(figure.values)))
    middle = y + ROW / 2 - 2
    end = left + length - CUT
    cut = f'<path class="cut" d="M{end:.1f} {y + ROW - 5} l6 {7 - ROW} h4 l-6 {ROW - 7} z"/>'
    return "\n".join(
        [
            f'<text x="{x}" y="{y + 13}">{escape(figure.contender)}</text>',
            f'<rect class="{_kind(figure)}" x="{left}" y="{y + 2}" width="{length:.1f}" height="{ROW - 7}" rx="2"/>',
            cut
            if figure.median > most
            else f'<line class="range" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
            f'<text x="{max(left + length, high) + 6:.1f}" y="{y + 13}">{number(figure.median)}</text>',
        ]
    )


def _kind(figure: Figure) -> str:
    if figure.contender.startswith(OURS):
        return "ours"
    return "bare" if figure.contender.startswith("bare") else "peer"
