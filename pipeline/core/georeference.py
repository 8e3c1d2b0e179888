"""Where a raster lies on the Earth: plain values, no library."""

from dataclasses import dataclass

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class GroundControl:
    """Ground control points: where a few pixels lie, in the place of a transform."""

    crs_wkt: str | None
    """WKT2 of the reference system of x and y, or None when it is not known."""
    points: tuple[tuple[float, float, float, float, float], ...]
    """(row, col, x, y, z) of each point; rows and columns count from the upper left corner of pixel (0, 0)."""

    def coarser(self, rows: float, cols: float) -> "GroundControl":
        """The same points in pixels that are so many times as high and as wide."""
        return GroundControl(
            self.crs_wkt, tuple((row / rows, col / cols, x, y, z) for row, col, x, y, z in self.points)
        )


@dataclass(frozen=True, slots=True)
class GeoReference:
    """Coordinate reference system and affine transform of a raster.

    The transform is in rasterio's order: x = a * col + b * row + c, y = d * col + e * row + f, for the
    corner of a pixel (its centre is at col + 0.5, row + 0.5).
    """

    crs_wkt: str | None
    """WKT2 of the reference system, or None when the raster has none."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f)."""

    def __post_init__(self) -> None:
        a, b, _, d, e, _ = self.transform
        if a * e - b * d == 0:
            raise ValueError(f"the transform {self.transform} maps the raster to a line")

    @property
    def rotated(self) -> bool:
        """True when rows and columns do not run along the axes of the reference system."""
        return self.transform[1] != 0 or self.transform[3] != 0

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in squared units of the reference system."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    def coarser(self, rows: float, cols: float) -> "GeoReference":
        """With pixels that are so many times as high and as wide, from the same corner on.

        >>> GeoReference(None, (10.0, 0.0, 500.0, 0.0, -10.0, 900.0)).coarser(2, 3).transform
        (30.0, 0.0, 500.0, 0.0, -20.0, 900.0)
        """
        a, b, c, d, e, f = self.transform
        return GeoReference(self.crs_wkt, (a * cols, b * rows, c, d * cols, e * rows, f))

    def moved(self, row: float, col: float) -> "GeoReference":
        """With the first pixel's corner at another place, in pixels.

        >>> GeoReference(None, (10.0, 0.0, 500.0, 0.0, -10.0, 900.0)).moved(-1, 3).transform
        (10.0, 0.0, 530.0, 0.0, -10.0, 910.0)
        """
        a, b, c, d, e, f = self.transform
        return GeoReference(self.crs_wkt, (a, b, a * col + b * row + c, d, e, d * col + e * row + f))

    @property
    def gdal_geotransform(self) -> str:
        """The six numbers in GDAL's order, as text that reads back to the same floats.

        >>> GeoReference(None, (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)).gdal_geotransform
        '500000.0 10.0 0.0 5000000.0 0.0 -10.0'
        """
        a, b, c, d, e, f = self.transform
        return " ".join(repr(v) for v in (c, a, b, f, d, e))
