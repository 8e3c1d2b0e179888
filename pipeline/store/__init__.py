"""The store side: zarr. It knows no network and no raster."""
