"""Small pictures of large inputs: means of their pixels, from the level of a pyramid that is just fine enough."""

from collections.abc import Sequence

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.plan import InputIdentity
from fcn_batch.pipeline.core.source import Pixels, RasterSource
from fcn_batch.pipeline.core.tolerance import FAIL, OnError
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.warped import WarpedSource
from fcn_batch.workflows.inputs.sources import level_of, source_of
from fcn_batch.workflows.inputs.tolerant import TolerantSource


def thumbnail(identity: InputIdentity, bands: Sequence[int], step: int, on_error: OnError = FAIL) -> Pixels:
    """An input with `step` x `step` of its pixels as one, `bands` counting from 1.

    ceil(height / step) rows and ceil(width / step) columns. InputError when it cannot be opened or, unless `on_error`
    says otherwise, decoded.
    """
    source = TolerantSource(_fine_enough(identity, step), on_error)
    try:
        rows, cols = (-(-side // step) for side in (identity.height, identity.width))
        grid = Grid(Size(rows, cols), identity.georeference.coarser(step, step))
        own = Grid(source.info.size, source.info.georeference)
        small = source if own == grid else WarpedSource(source, grid, "average")
        return small.read(Window(0, 0, rows, cols), tuple(bands))
    finally:
        source.close()


def _fine_enough(identity: InputIdentity, step: int) -> RasterSource:
    """The input, or the coarsest level of its file that has a pixel for each of the picture."""
    if len(identity.sources) != 1:
        return source_of(identity)
    file = identity.sources[0]
    levels = level_of(file, 0).info.levels
    height, width = identity.height // step, identity.width // step
    enough = [number for number, size in enumerate(levels) if size.height >= height and size.width >= width]
    return level_of(file, enough[-1]) if enough else source_of(identity)
