"""What each reader sees of each map: the letters of `matrix.letters`, and why where it is not all of them.

The first rule that fits decides. A version of GDAL that no rule names was never measured, and expects nothing.
"""

from dataclasses import dataclass

CLOSED = "-"
"""In the place of letters: the reader does not open the map."""
ALL = "CTNDLV"
_STORES = ("flat", "sharded", "pyramid", "flat, cut", "pyramid, cut")
_CUTS = ("flat, cut", "pyramid, cut")


@dataclass(frozen=True, slots=True)
class Rule:
    """What is expected where."""

    letters: str
    why: str = ""
    readers: tuple[str, ...] = ()
    """Empty: all; so below."""
    layouts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    gdal: tuple[tuple[int, int], tuple[int, int]] | None = None
    """First and last version of the GDAL that reads."""

    def fits(self, reader: str, gdal: tuple[int, ...], layout: str, kind: str) -> bool:
        """True where the rule holds."""
        named = ((self.readers, reader), (self.layouts, layout), (self.kinds, kind))
        if any(wanted and found not in wanted for wanted, found in named):
            return False
        return self.gdal is None or (bool(gdal) and self.gdal[0] <= gdal <= self.gdal[1])


def find(reader: str, gdal: tuple[int, ...], layout: str, kind: str) -> Rule | None:
    """The rule for a cell; None where nothing was measured."""
    return next((rule for rule in RULES if rule.fits(reader, gdal, layout, kind)), None)


_OLD, _MIDDLE, _NEW = ((3, 0), (3, 10)), ((3, 12), (3, 12)), ((3, 13), (3, 13))
_ARRAYS = "It reads arrays, and knows nothing of places on the Earth; values are looked up by row and column."
_UNMOVED = "xarray keeps the points' rows and columns as they were: they are attributes to it."
_NO_SCALE = "Only maps of slides (inputs with a scale in micrometres) have an `ome` block, and the whole map only."
_STALE = (
    "xarray keeps `spatial:transform` as it was, and GDAL 3.13 prefers it to x and y: the window appears at the whole "
    "map's corner. Cut windows out of the flat store."
)
_ROTATED = (
    "No x and y can place a rotated grid, and xarray keeps the transform as it was: the window appears at the whole "
    "map's corner. Make the map north up before cutting (gdalwarp), or cut the COG (gdal_translate -srcwin)."
)

RULES = (
    # arrays only
    Rule("NDLVg", _UNMOVED, ("zarr-python",), _CUTS, ("GCPs",)),
    Rule("NDLVG", _ARRAYS, ("zarr-python",), kinds=("GCPs",)),
    Rule("NDLV", _ARRAYS, ("zarr-python",)),
    Rule("NDV", _ARRAYS + " It does not pass attributes on.", ("tensorstore",)),
    # slides
    Rule(
        "DLvM",
        "OME-Zarr has no place for a window's origin that xarray would move: it appears at the slide's corner.",
        ("ome-zarr-py",),
        ("flat, cut",),
        ("slide",),
    ),
    Rule(CLOSED, _NO_SCALE, ("ome-zarr-py",), ("pyramid, cut",)),
    Rule("DLVM", "It knows lengths in micrometres, no places on the Earth.", ("ome-zarr-py",), kinds=("slide",)),
    Rule(CLOSED, _NO_SCALE, ("ome-zarr-py",)),
    # GeoTIFF
    Rule(ALL + "G", "", ("rasterio", "GDAL", "gdal-wheel", "rioxarray", "odc-geo"), ("COG",), ("GCPs",)),
    Rule(ALL, "", layouts=("COG",)),
    # GDAL on stores
    Rule(CLOSED, "This build has no Zarr driver.", ("gdal-wheel",), _STORES),
    Rule(CLOSED, "GDAL up to 3.10 does not read Zarr v3; use the COG.", ("rasterio", "GDAL"), _STORES, gdal=_OLD),
    Rule(CLOSED, "GDAL 3.12 does not see sharded arrays.", ("rasterio", "GDAL"), ("sharded",), gdal=_MIDDLE),
    Rule(
        "CNDLv",
        "GDAL 3.12 does not know `spatial:transform`, and no x and y can place a rotated grid: it reads pixels.",
        ("rasterio", "GDAL"),
        _STORES,
        ("rotated",),
        _MIDDLE,
    ),
    Rule("CNDLv", _STALE, ("rasterio", "GDAL"), ("pyramid, cut",), ("GCPs", "no CRS", "slide"), _NEW),
    Rule("CtNDLv", _STALE, ("rasterio", "GDAL"), ("pyramid, cut",), gdal=_NEW),
    # xarray, and what it cut
    Rule("CtNDLv", _ROTATED, ("rasterio", "GDAL"), _CUTS, ("rotated",), _NEW),
    Rule("CtNDLv", _ROTATED, ("rioxarray", "odc-geo"), _CUTS, ("rotated",)),
    Rule(ALL, "", ("rioxarray", "odc-geo")),
    Rule(ALL, "", ("rasterio", "GDAL"), gdal=_MIDDLE),
    Rule(ALL, "", ("rasterio", "GDAL"), gdal=_NEW),
)
