"""The raster side: rasterio, pyproj, slide readers, vector files. It knows no network and no store."""
