"""A class map as one picture: classes in their colours, legend, scale bar, north arrow. The second door to matplotlib.

    +---------------------------------------+
    | title                                 |
    | subtitle                              |
    | +-----------------------------------+ |
    | |               map                 | |
    | +-----------------------------------+ |
    | [] class   12.3 %  [] class      N    |
    | [] class    4.5 %  [] no data    ^    |
    |                             |=|=|=|=| |
    +---------------------------------------+

Everything is placed in pixels, and the map's pixels are put there as they are: no colour that is not the legend's.
"""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_batch.pipeline.core.classes import ClassInfo
from fcn_batch.pipeline.raster.ground import Ground, round_length
from fcn_batch.workflows.finished.survey import Survey, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 2000
"""Rows and columns of the map in the picture, at most."""
NODATA_COLOUR = (224, 224, 224)
_SMALLEST = 900
"""Pixels of the map's longer side, at least: small maps are enlarged by whole factors."""
_LONGEST_NAME = 36
_MOST_CLASSES = 60
"""In the legend; the rest is counted."""
_INK, _PALE, _LINE = "#1b1f23", "#5f6871", "#8a939b"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the legend."""

    name: str
    colour: str
    share: str


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand, in pixels; heights and widths of boxes."""

    map_height: int
    map_width: int
    letter: float
    """Height of a letter."""
    columns: int
    rows: int
    """Of the legend."""
    column: float
    """Width of a column."""
    bar: float
    """Length of the scale bar; 0: there is none."""
    beside: bool
    """True when north arrow and scale bar stand beside the legend, else below it."""

    @property
    def margin(self) -> float:
        return 1.6 * self.letter

    @property
    def head(self) -> float:
        return 4.6 * self.letter

    @property
    def legend(self) -> float:
        return 1.75 * self.letter * self.rows

    @property
    def ground(self) -> float:
        return 7.5 * self.letter if self.bar else 0.0

    @property
    def width(self) -> int:
        wide = max(float(self.map_width), 26 * self.letter, self.bar + 2 * self.letter)
        return round(wide + 2 * self.margin)

    @property
    def foot(self) -> float:
        return max(self.legend, self.ground) if self.beside else self.legend + self.ground

    @property
    def height(self) -> int:
        return round(self.head + self.map_height + self.margin + self.foot + self.margin)


def quicklook_png(seen: Survey, ground: Ground | None, title: str, subtitle: str = "") -> bytes:
    """The picture of a surveyed map, as a PNG.

    Above the map stand title and subtitle; below it the classes that occur, the most frequent first, with their share
    of the pixels with data, and north arrow and scale bar as far as the ground is known.
    """
    zoom = max(1, _SMALLEST // max(seen.ids.shape))
    picture = paint(seen.ids, seen.legend, NODATA_COLOUR).repeat(zoom, axis=0).repeat(zoom, axis=1)
    entries = _entries(seen)
    pixel = None if ground is None else ground.metres * seen.step / zoom
    length, name = (0.0, "") if pixel is None else round_length(max(0.22 * picture.shape[1], 40) * pixel)
    layout = _layout(picture.shape[:2], entries, length / pixel if pixel else 0.0)
    figure = _figure(layout)
    left = round((layout.width - layout.map_width) / 2)
    bottom = layout.height - round(layout.head) - layout.map_height
    figure.figimage(picture, left, bottom, origin="upper")
    _frame(figure, left - 1, bottom - 1, layout.map_width + 2, layout.map_height + 2)
    _draw_head(figure, layout, title, subtitle)
    _draw_legend(figure, layout, entries, bottom - layout.margin)
    if ground is not None:
        top = bottom - layout.margin - (0 if layout.beside else layout.legend)
        _draw_ground(figure, layout, ground, name, top)
    return _png(figure)


def _entries(seen: Survey) -> list[_Entry]:
    found = sorted((one for one in seen.classes if one.pixels), key=lambda one: -one.pixels)
    entries = [_Entry(_short(one.info), one.info.colour, share_text(one.share)) for one in found[:_MOST_CLASSES]]
    if len(found) > _MOST_CLASSES:
        entries.append(_Entry(f"and {len(found) - _MOST_CLASSES} more", "none", ""))
    if seen.nodata:
        entries.append(_Entry("no data", "#{:02x}{:02x}{:02x}".format(*NODATA_COLOUR), ""))
    return entries


def share_text(share: float) -> str:
    """A share as per cent, 0 and 100 only where they are exact.

    >>> [share_text(share) for share in (0.0, 1e-6, 0.1234, 0.99999, 1.0)]
    ['0 %', '<0.1 %', '12.3 %', '>99.9 %', '100 %']
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "<0.1 %" if share < 5e-4 else ">99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def _short(info: ClassInfo) -> str:
    line = " ".join(info.name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"


def _layout(shape: tuple[int, ...], entries: list[_Entry], bar: float) -> _Layout:
    """Columns as wide as the longest entry, as many as there is room for."""
    height, width = shape
    letter = min(max(max(height, width) / 85, 12.0), 26.0)
    column = letter * (9 + 0.62 * max(len(entry.name) for entry in entries))
    room = max(float(width), 26 * letter)
    for beside in (True, False):
        free = room - (bar + 3 * letter if beside and bar else 0)
        columns = min(max(1, int(free // column)), len(entries))
        rows = -(-len(entries) // columns)
        if free >= column:
            break
    return _Layout(height, width, letter, columns, rows, column, bar, beside)


def _figure(layout: _Layout) -> "Figure":
    """An empty sheet on which a point is a pixel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(layout.width / 72, layout.height / 72), dpi=72, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _frame(figure: "Figure", *place: float, face: str = "none") -> None:
    """A rectangle: left, bottom, width, height."""
    from matplotlib.patches import Rectangle

    left, bottom, width, height = place
    figure.add_artist(
        Rectangle((left, bottom), width, height, transform=None, facecolor=face, edgecolor=_LINE, linewidth=1)
    )


def _write(figure: "Figure", x: float, y: float, text: str, **style: Any) -> None:
    """Text at a pixel; a dollar sign is no formula."""
    figure.text(x, y, text, transform=None, parse_math=False, **{"color": _INK, **style})


def _draw_head(figure: "Figure", layout: _Layout, title: str, subtitle: str) -> None:
    letter, left = layout.letter, layout.margin
    room = int((layout.width - 2 * left) / (0.62 * letter))
    _write(figure, left, layout.height - 2.4 * letter, _cut(title, int(room / 1.5)), size=1.5 * letter, weight="bold")
    _write(figure, left, layout.height - 3.9 * letter, _cut(subtitle, room), size=0.95 * letter, color=_PALE)


def _cut(text: str, room: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else line[: max(room - 1, 1)] + "…"


def _draw_legend(figure: "Figure", layout: _Layout, entries: list[_Entry], top: float) -> None:
    """Column by column, from the left edge."""
    letter = layout.letter
    for number, entry in enumerate(entries):
        column, row = divmod(number, layout.rows)
        left, base = layout.margin + column * layout.column, top - (row + 1) * 1.75 * letter + 0.5 * letter
        if entry.colour != "none":
            _frame(
                figure, round(left), round(base - 0.15 * letter), round(1.7 * letter), round(letter), face=entry.colour
            )
        _write(figure, left + 2.4 * letter, base, entry.name, size=letter)
        right = left + layout.column - 1.6 * letter
        _write(figure, right, base, entry.share, size=letter, color=_PALE, ha="right")


def _draw_ground(figure: "Figure", layout: _Layout, ground: Ground, name: str, top: float) -> None:
    """North arrow, and below it the scale bar with its length, at the right edge."""
    from matplotlib.patches import Polygon

    letter, right = layout.letter, layout.width - layout.margin
    left, base = right - layout.bar, top - 6.0 * letter
    for quarter in range(4):
        face = _INK if quarter % 2 == 0 else "white"
        _frame(figure, left + quarter * layout.bar / 4, base, layout.bar / 4, 0.45 * letter, face=face)
    label = name if ground.same else f"{name} (in the middle)"
    _write(figure, right, base - 1.3 * letter, label, size=letter, ha="right")
    if ground.north is None:
        return
    ahead = np.array([ground.north[1], -ground.north[0]])  # x to the right, y up
    aside = np.array([-ahead[1], ahead[0]])
    middle = np.array([right - 2.6 * letter, top - 2.6 * letter])
    tip, tail = middle + 1.5 * letter * ahead, middle - 0.5 * letter * ahead
    for side, face in ((1, _INK), (-1, "white")):
        wing = middle - 1.2 * letter * ahead + side * 0.85 * letter * aside
        figure.add_artist(
            Polygon([tip, tail, wing], closed=True, transform=None, facecolor=face, edgecolor=_INK, linewidth=1)
        )
    at = middle + 2.3 * letter * ahead
    _write(figure, at[0], at[1], "N", size=letter, weight="bold", ha="center", va="center")


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it in the picture
        figure.savefig(data, format="png", dpi=72, metadata={"Software": None})
    return data.getvalue()
