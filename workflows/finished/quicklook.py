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

The map's pixels are put there as they are: no colour that is not the legend's. matplotlib lays the legend out; the
rest is placed around it, in pixels.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

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


def quicklook_png(seen: Survey, ground: Ground | None, title: str, subtitle: str = "") -> bytes:
    """Return the picture of a surveyed map, as a PNG.

    Above the map stand title and subtitle; below it the classes that occur, the most frequent first, with their share
    of the pixels with data, and north arrow and scale bar as far as the ground is known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import IdentityTransform

    zoom = max(1, _SMALLEST // max(seen.ids.shape))
    picture = paint(seen.ids, seen.legend, NODATA_COLOUR).repeat(zoom, axis=0).repeat(zoom, axis=1)
    height, width = picture.shape[:2]
    letter = min(max(max(height, width) / 85, 12.0), 26.0)
    margin, head, pixel = 1.6 * letter, 4.6 * letter, None if ground is None else ground.metres * seen.step / zoom
    length, name = (0.0, "") if pixel is None else round_length(max(0.22 * width, 40) * pixel)
    bar = length / pixel if pixel else 0.0
    room = max(float(width), 26 * letter, bar + 2 * letter)
    figure = Figure(figsize=(1, 1), dpi=72, facecolor="white")  # a point is a pixel
    FigureCanvasAgg(figure)
    legend = _legend(figure, _entries(seen), letter, room - (bar + 3 * letter if bar else 0))
    with _any_glyph():
        classes = legend.get_window_extent()
    beside = classes.width + bar + 3 * letter <= room
    scale = 7.5 * letter if bar else 0.0
    foot = max(classes.height, scale) if beside else classes.height + scale
    sheet = round(head + height + margin + foot + margin), round(max(room, classes.width) + 2 * margin)
    figure.set_size_inches(sheet[1] / 72, sheet[0] / 72)
    left, bottom = round((sheet[1] - width) / 2), sheet[0] - round(head) - height
    figure.figimage(picture, left, bottom, origin="upper")
    _frame(figure, left - 1, bottom - 1, width + 2, height + 2)
    letters = int((sheet[1] - 2 * margin) / (0.62 * letter))
    _write(figure, margin, sheet[0] - 2.4 * letter, _cut(title, int(letters / 1.5)), size=1.5 * letter, weight="bold")
    _write(figure, margin, sheet[0] - 3.9 * letter, _cut(subtitle, letters), size=0.95 * letter, color=_PALE)
    legend.set_bbox_to_anchor((margin, bottom - margin, 0, 0), transform=IdentityTransform())
    if ground is not None:
        top = bottom - margin - (0 if beside else classes.height)
        _draw_scale(
            figure,
            (sheet[1] - margin, top - 6.0 * letter),
            bar,
            name if ground.same else f"{name} (in the middle)",
            letter,
        )
        _draw_north(figure, (sheet[1] - margin - 2.6 * letter, top - 2.6 * letter), ground, letter)
    data = io.BytesIO()
    with _any_glyph():
        figure.savefig(data, format="png", dpi=72, metadata={"Software": None})
    return data.getvalue()


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Say nothing of characters that the font lacks: a box stands for them in the picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _entries(seen: Survey) -> list[tuple[str, str]]:
    """Text and colour of the lines of the legend."""
    found = sorted((one for one in seen.classes if one.pixels), key=lambda one: -one.pixels)
    entries = [
        (f"{_cut(one.info.name, _LONGEST_NAME)}   {share_text(one.share)}", one.info.colour)
        for one in found[:_MOST_CLASSES]
    ]
    if len(found) > _MOST_CLASSES:
        entries.append((f"and {len(found) - _MOST_CLASSES} more", "none"))
    if seen.nodata:
        entries.append(("no data", "#{:02x}{:02x}{:02x}".format(*NODATA_COLOUR)))
    return entries


def share_text(share: float) -> str:
    """A share as per cent, 0 and 100 only where they are exact.

    >>> [share_text(share) for share in (0.0, 1e-6, 0.1234, 0.99999, 1.0)]
    ['0 %', '<0.1 %', '12.3 %', '>99.9 %', '100 %']
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "<0.1 %" if share < 5e-4 else ">99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def _cut(text: str, room: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else line[: max(room - 1, 1)] + "…"


def _legend(figure: "Figure", entries: list[tuple[str, str]], letter: float, room: float) -> Any:
    """Lay the legend out in as many columns as there is room for."""
    from matplotlib.patches import Patch

    column = letter * (5 + 0.62 * max(len(text) for text, _ in entries))
    legend = figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="none" if colour == "none" else _LINE, linewidth=1)
            for _, colour in entries
        ],
        labels=[
            "" for _ in entries
        ],  # the texts come below: here some would be formulas, and those that begin with _ left out
        ncols=min(max(1, int(room // column)), len(entries)),
        fontsize=letter,
        labelcolor=_INK,
        loc="upper left",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.7,
        handleheight=1.0,
    )
    for line, (text, _) in zip(legend.get_texts(), entries, strict=True):
        line.set_parse_math(False)
        line.set_text(text)
    return legend


def _frame(figure: "Figure", *place: float, face: str = "none") -> None:
    """Draw a rectangle: left, bottom, width, height."""
    from matplotlib.patches import Rectangle

    left, bottom, width, height = place
    figure.add_artist(
        Rectangle((left, bottom), width, height, transform=None, facecolor=face, edgecolor=_LINE, linewidth=1)
    )


def _write(figure: "Figure", x: float, y: float, text: str, **style: Any) -> None:
    """Write text at a pixel; a dollar sign is no formula."""
    figure.text(x, y, text, transform=None, parse_math=False, **{"color": _INK, **style})


def _draw_scale(figure: "Figure", end: tuple[float, float], length: float, name: str, letter: float) -> None:
    """Draw the scale bar up to its right end, and its length below it."""
    right, base = end
    for quarter in range(4):
        face = _INK if quarter % 2 == 0 else "white"
        _frame(figure, right - (1 - quarter / 4) * length, base, length / 4, 0.45 * letter, face=face)
    _write(figure, right, base - 1.3 * letter, name, size=letter, ha="right")


def _draw_north(figure: "Figure", middle: tuple[float, float], ground: Ground, letter: float) -> None:
    """Draw the arrow around a pixel."""
    from matplotlib.patches import Polygon

    if ground.north is None:
        return
    ahead = np.array([ground.north[1], -ground.north[0]])  # x to the right, y up
    aside = np.array([-ahead[1], ahead[0]])
    tip, tail = middle + 1.5 * letter * ahead, middle - 0.5 * letter * ahead
    for side, face in ((1, _INK), (-1, "white")):
        wing = middle - 1.2 * letter * ahead + side * 0.85 * letter * aside
        figure.add_artist(
            Polygon([tip, tail, wing], closed=True, transform=None, facecolor=face, edgecolor=_INK, linewidth=1)
        )
    x, y = middle + 2.3 * letter * ahead
    _write(figure, x, y, "N", size=letter, weight="bold", ha="center", va="center")
