"""How a raster is cut, and the way of a block from the raster to its receipt, in one process."""
