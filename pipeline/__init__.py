"""The parts of a run: a pure core, and beside it the network, raster and store sides."""
