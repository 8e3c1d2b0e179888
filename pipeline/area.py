"""The part of a raster that somebody wants a map of: polygons in its pixels."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcn_batch.pipeline.geometry import Size, Window

Point = tuple[float, float]
"""Column and row; (0, 0) is the corner of the first pixel."""
Ring = Annotated[tuple[Point, ...], Field(min_length=4)]
"""A closed line: the last point is the first."""
Polygon = Annotated[tuple[Ring, ...], Field(min_length=1)]
"""Its outline, and those of its holes."""
MAX_POINTS = 100_000


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
            for polygon, (left, top, right, bottom) in ((polygon, _box([polygon])) for polygon in self.polygons)
            if left < window.stop_col and right > window.col and top < window.stop_row and bottom > window.row
        ]

    def columns(self, size: Size) -> int:
        """How many columns of a raster it spans.

        >>> ring = ((-5.0, 2.0), (7.5, 2.0), (7.5, 9.0), (-5.0, 2.0))
        >>> Area(polygons=((ring,),)).columns(Size(20, 100))
        8
        """
        left, _, right, _ = _box(self.polygons)
        return max(1, min(size.width, math.ceil(right)) - max(0, math.floor(left)))


def _box(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom: outlines lie around their holes."""
    cols, rows = zip(*(point for polygon in polygons for point in polygon[0]), strict=True)
    return min(cols), min(rows), max(cols), max(rows)
