"""Rasters whose values are numbers of colours, as the colours."""

from dataclasses import replace

import numpy as np

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource, check_read


class PaletteSource:
    """The colours of `source`, which has a palette: red, green and blue as bands of bytes.

    What the palette has no colour for, or one that cannot be seen, is not valid.
    """

    def __init__(self, source: RasterSource) -> None:
        self._source = source
        self._info: RasterInfo | None = None

    @property
    def info(self) -> RasterInfo:
        """As the source gives it, with three bands; ValueError when it has no palette."""
        if self._info is None:
            numbers = self._source.info
            if not numbers.palette:
                raise ValueError(f"{numbers.path} has no palette")
            self._info = replace(
                numbers,
                bands=3,
                dtype="uint8",
                descriptions=(None, None, None),
                colour_roles=("red", "green", "blue"),
                has_mask=True,
                scales=(),
                sources=tuple(file.model_copy(update={"colours": True}) for file in numbers.sources),
            )
        return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Colours of `window`; `bands` are some of 1, 2 and 3. The errors of the source, ValueError for other bands."""
        check_read(self.info, window, bands)
        table = np.array(self.info.palette, dtype=np.uint8)
        numbers = self._source.read(window, (1,))
        known = (numbers.values[0] >= 0) & (numbers.values[0] < len(table))
        colours = table[np.where(known, numbers.values[0], 0)]
        values = np.moveaxis(colours[..., [band - 1 for band in bands]], -1, 0)
        return Pixels(np.ascontiguousarray(values), numbers.valid & known & (colours[..., 3] > 0))

    def close(self) -> None:
        """Close the source."""
        self._source.close()
