"""The forms that a class map can be exported to; light enough for the command line's help."""

ENDINGS = {
    "cog": (".cog.tif", ".tif", ".tiff"),
    "png": (".png",),
    "html": (".html", ".htm"),
    "ome-zarr": (".ome.zarr", ".zarr"),
    "gpkg": (".gpkg",),
    "geojson": (".geojson", ".json"),
    "geoparquet": (".parquet", ".geoparquet"),
    "flatgeobuf": (".fgb",),
    "csv": (".csv",),
}
"""The endings of their names; the first is the default."""
VECTORS = ("gpkg", "geojson", "geoparquet", "flatgeobuf")
