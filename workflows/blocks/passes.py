"""From pixels to classes, exactly: strip by strip, or tile by tile. Finished rows come out from top to bottom.

A pass decides one `part`: a lane's columns, from its first wanted row to its last. What it yields are bands of rows
without gaps; what it sees beyond the part, and in which pieces, follows from the plan alone, so that a part has the
same bits whatever else the pass decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.plan import Cut, Plan
from fcn_batch.pipeline.core.source import Pixels, RasterSource
from fcn_batch.pipeline.core.tiling import Descent, exact_tiles, lane_columns
from fcn_batch.pipeline.core.validity import is_valid
from fcn_batch.pipeline.network.confidence import PLANES
from fcn_batch.pipeline.network.predictor import Choice, Decided, StripPass, Strips, Tiles
from fcn_batch.workflows.blocks.reading import RowReader


@dataclass(slots=True)
class Effort:
    """What the network did."""

    passes: int = 0
    """Calls: strips or tiles."""
    forwarded: int = 0
    """Pixels it saw, halo and padding included."""

    def count(self, rows: int, cols: int) -> None:
        """One more call, over so many pixels."""
        self.passes += 1
        self.forwarded += rows * cols

    def since(self, before: "Effort") -> "Effort":
        """What was done after `before`."""
        return Effort(self.passes - before.passes, self.forwarded - before.forwarded)


@dataclass(frozen=True, slots=True)
class Band:
    """Finished rows of a part."""

    row: int
    classes: NDArray[np.uint8]
    """Class ids, (rows, columns of the part); NODATA where there is no data."""
    why: NDArray[np.uint8]
    """Why there is none, as flags of validity.py."""
    planes: NDArray[np.uint8] | None = None
    """How sure the network is, (2, rows, columns), in the same way; None when it is not wanted."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What all ways of a pass work with."""

    plan: Plan
    source: RasterSource
    ids: NDArray[np.uint8]
    """Class id of every score channel."""
    device: str
    effort: Effort
    ahead: int = 1
    """Slabs of rows that are read at once."""
    probabilities: bool = False
    """True when the network's scores are probabilities."""

    @property
    def layers(self) -> int:
        """What comes back for each pixel: the best channel, and how sure it is if that is wanted."""
        return 1 + PLANES if self.plan.confidence else 1

    def band(self, row: int, choice: Choice, why: NDArray[np.uint8]) -> Band:
        """Class ids, and how sure they are, where there is data."""
        classes, valid = self.ids[choice[0]], is_valid(why)
        classes[~valid] = NODATA
        return Band(row, classes, why, np.where(valid, choice[1:], np.uint8(NODATA)) if len(choice) > 1 else None)

    def empty(self, row: int, why: NDArray[np.uint8]) -> Band:
        """Rows without data."""
        planes = np.full((PLANES, *why.shape), NODATA, dtype=np.uint8) if self.plan.confidence else None
        return Band(row, np.full(why.shape, NODATA, dtype=np.uint8), why, planes)

    def reader(self, area: Window) -> RowReader:
        """Reads the rows of `area`."""
        return RowReader(self.source, self.plan.bands, area, self.ahead)


def stream(work: Pass, part: Window, strips: Strips) -> Iterator[Band]:
    """Strip by strip, each layer keeping the rows it still needs."""
    cut, size = work.plan.cut, work.plan.input.size
    segment = Window(part.row // cut.segment * cut.segment, part.col, cut.segment, part.width).clipped(size)
    descent = Descent.of(segment, round_up(size.height, cut.stride), strips.rows, cut.overlap, strips.warm_up)
    left, right = lane_columns(part, cut.overlap, size.width, cut.stride)
    row = descent.start(part.row)
    bottom = min(descent.after(part.stop_row), size.height)  # not a row further is read ahead: it may be damaged
    with work.reader(Window(row, left, bottom - row, min(right, size.width) - left)) as reader:
        flow = _Flow(work, part, descent, strips, reader)
        while flow.reached < part.stop_row:
            rows, _ = descent.rows(row)
            yield from flow.push(row, reader.rows(row, min(row + rows, size.height)))
            reader.release(min(flow.decided, row + rows))
            row += rows
        yield from flow.arrived()


class _Flow:
    """A stream that leaves out long stretches without data.

    Rows without data go in only as far as rows with data before them still want to be decided. When data come
    again, the rows left out follow; or, where they are many, a new pass is begun as far above as it must be.
    """

    def __init__(self, work: Pass, part: Window, descent: Descent, strips: Strips, reader: RowReader) -> None:
        cut, size = work.plan.cut, work.plan.input.size
        self.decided = part.row
        """All rows of the part before this one are finished."""
        self._work, self._part, self._descent, self._strips, self._reader = work, part, descent, strips, reader
        self._left, self._right = lane_columns(part, cut.overlap, size.width, cut.stride)
        self._pass: StripPass | None = None
        self._next_in = descent.start(part.row)
        """The row that goes in next."""
        self._next_out = self._next_in
        """The row that comes out next."""
        self._data_until = -1
        """The row after the last one with data."""
        self._coming: tuple[int, Decided] | None = None
        """Rows on their way from the device, and the row after them."""

    @property
    def reached(self) -> int:
        """All rows before this one are decided, or on their way."""
        return self.decided if self._coming is None else max(self.decided, self._coming[0])

    def push(self, row: int, pixels: Pixels) -> Iterator[Band]:
        """One more strip, which begins at `row`."""
        if pixels.valid.any():
            self._data_until = row + len(pixels.valid)
        elif self._next_out >= self._data_until:
            yield from self.arrived()
            yield from self._finish(row + len(pixels.valid), None)
            return
        start = self._descent.start(row)
        if self._pass is None or start > self._next_in:
            sure, probabilities = self._work.plan.confidence, self._work.probabilities
            self._pass = self._strips.begin(confidence=sure, probabilities=probabilities)
            self._next_in = self._next_out = max(self._next_in, start)
        while self._next_in < row:
            yield from self._feed(pixels.part(slice(0)))
        yield from self._feed(pixels)

    def _feed(self, pixels: Pixels) -> Iterator[Band]:
        """One strip into the stream; rows and columns that are not given are without data."""
        assert self._pass is not None, "a pass has been begun"
        rows, last = self._descent.rows(self._next_in)
        grid = (rows, self._right - self._left)
        decided = self._pass.push(pixels.values, pixels.valid, grid, last=last)
        self._work.effort.count(*grid)
        self._next_in += rows
        yield from self.arrived()  # of the strip before: a GPU is at work on this one already
        if decided is not None:
            self._next_out += decided.rows
            self._coming = (self._next_out, decided)

    def arrived(self) -> Iterator[Band]:
        """The rows that were on their way."""
        if self._coming is not None:
            stop, decided = self._coming
            self._coming = None
            yield from self._finish(stop, decided.choice())

    def _finish(self, stop: int, choice: Choice | None) -> Iterator[Band]:
        """All rows before `stop` are decided: the last ones by `choice`, or all of them without data."""
        first, end = self.decided, min(stop, self._part.stop_row)
        if end <= first:
            return
        self.decided = end
        columns = slice(self._part.col - self._left, self._part.stop_col - self._left)
        why = self._reader.reasons(first, end)[:, columns]
        if choice is None:
            yield self._work.empty(first, why)
            return
        begin = first - (stop - choice.shape[1])
        assert begin >= 0, "rows came out late"
        yield self._work.band(first, choice[:, begin : begin + end - first, columns], why)


def tiles(work: Pass, part: Window, network: Tiles) -> Iterator[Band]:
    """Every pixel from the one tile that saw all of its context."""
    cut, size = work.plan.cut, work.plan.input.size
    whole = _tiles_area(size, part, cut)
    with work.reader(whole) as reader:
        for row_of_tiles in exact_tiles(size, part, cut.tile, cut.overlap):
            read = row_of_tiles[0].read
            band = Window(row_of_tiles[0].core.row, part.col, row_of_tiles[0].core.height, part.width)
            band = band.intersection(part)
            pixels = reader.rows(read.row, read.stop_row)
            rows = Window(read.row, whole.col, read.height, whole.width)
            choice = np.zeros((work.layers, band.height, band.width), dtype=np.uint8)
            for tile in row_of_tiles:
                core = tile.core.intersection(band)
                if not pixels.valid[core.slices(rows)].any():
                    continue
                seen = tile.read.slices(rows)
                values = pixels.values[(slice(None), *seen)]
                here, sure = core.slices(tile.read), work.plan.confidence
                best = network.choice(
                    values, pixels.valid[seen], here, confidence=sure, probabilities=work.probabilities
                )
                choice[(slice(None), *core.slices(band))] = best
                work.effort.count(round_up(tile.read.height, cut.stride), round_up(tile.read.width, cut.stride))
            yield work.band(band.row, choice, pixels.reasons[band.slices(rows)])
            reader.release(band.stop_row - cut.overlap)


def _tiles_area(size: Size, part: Window, cut: Cut) -> Window:
    """All that the exact tiles which touch `part` see."""
    grown = part.aligned(cut.tile)
    square = Window(grown.row, grown.col, round_up(grown.height, cut.tile), round_up(grown.width, cut.tile))
    return square.clipped(size).padded(cut.overlap).clipped(size)
