"""The network side: torch. It knows no raster and no store."""
