"""From pixels to classes with blended tiles: for networks that look at the whole image, or on request.

Tiles are summed in the order of one grid over the whole raster, so a pixel's score has the same bits whatever part
is asked for. What is summed are the scores before the network's last upsampling, where it has one: at stride 8 that
is 64 times less. Only one row of tiles is in memory; the rows it shares with the next are carried over.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.blending import axis_weights
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.tiling import Axis, Blend
from fcn_batch.pipeline.network.predictor import Tiles, Upsampler
from fcn_batch.workflows.blocks.passes import Band, Pass
from fcn_batch.workflows.blocks.reading import RowReader


@dataclass(frozen=True, slots=True)
class _Cells:
    """The grid of score cells, and which of them a part needs."""

    side: int
    """Pixels of a cell along an axis."""
    window: Window
    """The cells that the part's pixels are made of: those under it, and one more around for the upsampling."""
    rows: Axis
    """Tiles along the rows, in cells."""
    cols: Axis

    @classmethod
    def of(cls, work: Pass, part: Window, side: int) -> "_Cells":
        cut, size = work.plan.cut, work.plan.input.size
        whole = Size(-(-size.height // side), -(-size.width // side))
        under = part.aligned(side)
        window = Window(under.row // side, under.col // side, -(-under.height // side), -(-under.width // side))
        axes = (Axis(length, cut.tile // side, cut.overlap // side) for length in (whole.height, whole.width))
        return cls(side, window.padded(1).clipped(whole), *axes)

    def tile(self, row: int, col: int) -> Window:
        """A tile, in cells."""
        (top, bottom), (left, right) = self.rows.span(row), self.cols.span(col)
        return Window(top, left, bottom - top, right - left)

    def pixels(self, cells: Window, size: Size) -> Window:
        """The pixels of so many cells, inside the raster."""
        side = self.side
        return Window(cells.row * side, cells.col * side, cells.height * side, cells.width * side).clipped(size)

    @property
    def tile_rows(self) -> range:
        return self.rows.touching(self.window.row, self.window.stop_row)

    @property
    def tile_cols(self) -> range:
        return self.cols.touching(self.window.col, self.window.stop_col)

    def area(self, size: Size) -> Window:
        """All pixels that the tiles see, and a cell more around: whether there is data decides if a tile counts."""
        first = self.tile(self.tile_rows[0], self.tile_cols[0])
        last = self.tile(self.tile_rows[-1], self.tile_cols[-1])
        cells = Window(first.row, first.col, last.stop_row - first.row, last.stop_col - first.col)
        return self.pixels(cells, size).padded(self.side).clipped(size)


def blended(work: Pass, part: Window, network: Tiles, blend: Blend) -> Iterator[Band]:
    """Weighted sums of overlapping tiles, one row of tiles at a time, upsampled when they are complete."""
    size = work.plan.input.size
    cells = _Cells.of(work, part, network.factor)
    kind = {"confidence": work.plan.confidence, "probabilities": work.probabilities}
    upsampler = Upsampler(len(work.ids), cells.side, work.device, **kind)
    col = part.col - cells.window.col * cells.side
    out = cells.window.row * cells.side  # the pixel row that comes out next
    carried = np.zeros((len(work.ids), 0, cells.window.width), dtype=np.float32)
    area = cells.area(size)
    with work.reader(area) as reader:
        for index in cells.tile_rows:
            sums = _row_of_tiles(work, cells, index, network, blend, carried, reader)
            last = index == cells.tile_rows[-1]
            finished = sums.shape[1] if last else max(cells.rows.span(index + 1)[0] - _top(cells, index), 0)
            carried = sums[:, finished:]
            choice = upsampler.push(sums[:, :finished], last=last) if finished else None
            if choice is not None:
                start, stop = max(out, part.row), min(out + choice.shape[1], part.stop_row)
                if stop > start:
                    rows = choice[:, start - out : stop - out, col : col + part.width]
                    why = reader.reasons(start, stop)[:, part.col - area.col : part.stop_col - area.col]
                    yield work.band(start, rows, why)
                out += choice.shape[1]
            reader.release(min(out, (0 if last else cells.rows.span(index + 1)[0] - 1) * cells.side))


def _top(cells: _Cells, index: int) -> int:
    """First wanted row of cells that tile row `index` has."""
    return max(cells.rows.span(index)[0], cells.window.row)


def _row_of_tiles(
    work: Pass,
    cells: _Cells,
    index: int,
    network: Tiles,
    blend: Blend,
    carried: NDArray[np.float32],
    reader: RowReader,
) -> NDArray[np.float32]:
    """Sums of the wanted cells of one row of tiles: (classes, rows, cols). `carried` is what the row above gave."""
    size, cut = work.plan.input.size, work.plan.cut
    start, stop = cells.rows.span(index)
    band = Window(start, cells.window.col, stop - start, cells.window.width).intersection(cells.window)
    sums = np.zeros((len(work.ids), band.height, band.width), dtype=np.float32)
    sums[:, : carried.shape[1]] = carried
    seen = _seen(cells, start, stop, size)
    pixels = reader.rows(seen.row, seen.stop_row)
    for col in cells.tile_cols:
        tile = cells.tile(index, col)
        window = cells.pixels(tile, size)
        if not pixels.valid[window.padded(cells.side).intersection(seen).slices(seen)].any():
            continue
        here = window.slices(seen)
        scores = network.scores(pixels.values[(slice(None), *here)], pixels.valid[here])
        weights = np.outer(axis_weights(cells.rows, index, blend), axis_weights(cells.cols, col, blend))
        part = tile.intersection(band)
        inside = part.slices(tile)
        sums[(slice(None), *part.slices(band))] += scores[(slice(None), *inside)] * weights[inside].astype(np.float32)
        work.effort.count(round_up(window.height, cut.stride), round_up(window.width, cut.stride))
    return sums


def _seen(cells: _Cells, start: int, stop: int, size: Size) -> Window:
    """The pixels to read for the tiles from cell row `start` to `stop`, a cell more around."""
    area = cells.area(size)
    rows = Window(start * cells.side, area.col, (stop - start) * cells.side, area.width).clipped(size)
    return rows.padded(cells.side).intersection(area)
