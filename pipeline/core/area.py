"""The part of a raster that somebody wants a map of: polygons in its pixels."""

from functools import cached_property
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcn_batch.pipeline.core.geometry import Window

Point = tuple[float, float]
"""Column and row; (0, 0) is the corner of the first pixel."""
Ring = Annotated[tuple[Point, ...], Field(min_length=4)]
"""A closed line: the last point is the first."""
Polygon = Annotated[tuple[Ring, ...], Field(min_length=1)]
"""Its outline, and those of its holes."""
MAX_POINTS = 1_000_000
"""The limit for all polygons together: they are part of the plan, which every worker reads."""


class Area(BaseModel):
    """Polygons; a pixel belongs to the area when its centre lies in one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    polygons: Annotated[tuple[Polygon, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _not_too_fine(self) -> "Area":
        if (points := sum(len(ring) for polygon in self.polygons for ring in polygon)) > MAX_POINTS:
            raise ValueError(f"{points} points, and {MAX_POINTS} are allowed")
        return self

    def near(self, window: Window) -> list[Polygon]:
        """The polygons whose boxes overlap a window."""
        return [
            polygon
            for polygon, (left, top, right, bottom) in zip(self.polygons, self._boxes, strict=True)
            if left < window.stop_col and right > window.col and top < window.stop_row and bottom > window.row
        ]

    @cached_property
    def _boxes(self) -> list[tuple[float, float, float, float]]:
        return [_box(polygon) for polygon in self.polygons]

    @property
    def pixels(self) -> float:
        """How many pixels it covers, those beyond the raster too; shared ones count twice."""
        return sum(
            abs(_signed(outline)) - sum(abs(_signed(hole)) for hole in holes) for outline, *holes in self.polygons
        )


def _signed(ring: Ring) -> float:
    """Area of a ring, negative for one of the two directions (the shoelace formula).

    >>> _signed(((0.0, 0.0), (4.0, 0.0), (4.0, 2.0), (0.0, 0.0)))
    4.0
    """
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def _box(polygon: Polygon) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom: the outline lies around its holes."""
    cols, rows = zip(*polygon[0], strict=True)
    return min(cols), min(rows), max(cols), max(rows)
