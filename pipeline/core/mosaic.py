"""Several sources as one: on each pixel the first of them that has data there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource, check_read


@dataclass(frozen=True, slots=True)
class Piece:
    """A source whose pixels are those of the mosaic, from (row, col) on; it may reach beyond its borders."""

    source: RasterSource
    row: int
    col: int

    @property
    def window(self) -> Window:
        """Where it lies."""
        size = self.source.info.size
        return Window(self.row, self.col, size.height, size.width)


class MosaicSource:
    """`pieces`, the first on top, on a grid of `size`. Bands, types and meaning must agree: see `mosaic_problem`."""

    def __init__(self, name: str, pieces: Sequence[Piece], size: Size, georeference: GeoReference) -> None:
        self._name, self._pieces, self._size, self._georeference = name, tuple(pieces), size, georeference
        self._info: RasterInfo | None = None

    @property
    def info(self) -> RasterInfo:
        """That of the first piece, for the whole grid."""
        if self._info is None:
            self._info = self._together([piece.source.info for piece in self._pieces])
        return self._info

    def _together(self, infos: Sequence[RasterInfo]) -> RasterInfo:
        return replace(
            infos[0],
            path=self._name,
            files=tuple(dict.fromkeys(file for info in infos for file in info.files)),
            size=self._size,
            georeference=self._georeference,
            storage_block=max(info.storage_block for info in infos),
            has_mask=True,
            ground=None,
            sources=tuple(file for info in infos for file in info.sources),
            levels=(self._size,),
        )

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; ValueError and the errors of the sources."""
        shape = (window.height, window.width)
        info = self.info
        check_read(info, window, bands)
        found = Pixels(np.zeros((len(bands), *shape), np.dtype(info.dtype)), np.zeros(shape, np.bool_))
        for piece in self._pieces:
            try:
                part = window.intersection(piece.window)
            except ValueError:
                continue
            here = part.slices(window)
            if found.valid[here].all():
                continue
            inside = Window(part.row - piece.row, part.col - piece.col, part.height, part.width)
            pixels = piece.source.read(inside, bands)
            new = pixels.valid & ~found.valid[here]
            found.values[(slice(None), *here)][:, new] = pixels.values[:, new]
            found.valid[here] |= new
        return found

    def close(self) -> None:
        """Close all."""
        for piece in self._pieces:
            piece.source.close()


def mosaic_problem(first: RasterInfo, other: RasterInfo) -> str | None:
    """Why the pixels of two rasters do not mean the same, or None."""
    if (other.bands, other.dtype) != (first.bands, first.dtype):
        return f"has {other.bands} bands of {other.dtype}, and {first.path} has {first.bands} of {first.dtype}"
    if other.scales != first.scales:
        return f"has other scales and offsets than {first.path}"
    if other.palette != first.palette:
        return f"has another palette than {first.path}"
    named = [(info.descriptions, info.colour_roles) for info in (first, other)]
    return f"has its bands in another order than {first.path}" if named[0] != named[1] else None
