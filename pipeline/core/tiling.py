"""How a raster is cut: lanes, segments and blocks that tasks own, tiles that the network sees. Integers only.

A *lane* is a band of columns, a *segment* a part of it that one task does from top to bottom, and a *block* one row
of chunks of a lane: what is written, and has a receipt, at once::

              lane 0          lane 1
          +-------------+-------------+  segment 0 of each lane
          |   block 0   |   block 1   |
          |   block 2   |   block 3   |
          +-------------+-------------+  segment 1: its pass begins `halo` rows above it
          |   block 4   |   block 5   |
          +-------------+-------------+

A pass goes down a segment strip by strip (`Descent`), or row of tiles by row of tiles. Exact tiles have cores that
partition the raster, and see `halo` more pixels on each side; blended tiles overlap (`blending.py`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fcn_batch.pipeline.core.geometry import Size, Window, round_up

Blend = Literal["hann", "linear", "gaussian", "none"]
"""How overlapping tiles are weighted (`blending.py`)."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The blocks of a raster, in row-major order; `grid[index]` is a Window clipped at the raster's edge.

    >>> grid = BlockGrid(Size(5000, 9000), height=4096, width=4096)
    >>> len(grid), grid[5]
    (6, Window(row=4096, col=8192, height=904, width=808))
    """

    size: Size
    """The raster."""
    height: int
    """Rows of a block."""
    width: int
    """Columns of a block."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a block needs at least 1x1 pixels, got {self.height}x{self.width}")

    @property
    def columns(self) -> int:
        """Number of blocks side by side."""
        return -(-self.size.width // self.width)

    def __len__(self) -> int:
        return -(-self.size.height // self.height) * self.columns

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        row, col = divmod(index, self.columns)
        return Window(row * self.height, col * self.width, self.height, self.width).clipped(self.size)


Work = tuple[int, ...]
"""Blocks below each other in one segment: what one task does in one pass."""


def works(grid: BlockGrid, segment: int, wanted: Iterable[int]) -> list[Work]:
    """The `wanted` blocks as passes, none across the border of a segment of `segment` rows.

    >>> works(BlockGrid(Size(60, 20), height=10, width=10), segment=30, wanted=[0, 2, 6, 8, 1, 5])
    [(0, 2), (1,), (5,), (6, 8)]
    """
    per_segment = segment // grid.height
    passes: list[list[int]] = []
    for block in sorted(wanted, key=lambda block: (block // grid.columns // per_segment, block % grid.columns, block)):
        above = passes[-1][-1] if passes else -1
        row = block // grid.columns
        if above == block - grid.columns and row % per_segment:
            passes[-1].append(block)
        else:
            passes.append([block])
    return [tuple(blocks) for blocks in passes]


@dataclass(frozen=True, slots=True)
class Descent:
    """The strips in which a segment is streamed: one grid for the whole segment, wherever a pass of it begins.

    A pass that begins in the middle (after an interruption, or a stretch without data) starts far enough above the
    first row it is to decide that every layer is in flow before it meets a row which that one looks at; then all
    numbers have the bits of a pass from the segment's top::

        start                        start + warm_up         row - halo           row
          |  layers begin to give rows  |                        |  decides row …  |
    """

    top: int
    """First row of the segment's strips: `halo` above the segment, or the raster's top."""
    bottom: int
    """The raster's height, on the network's grid."""
    strip: int
    halo: int
    warm_up: int
    """Rows, in whole strips, until every layer gives rows; see `Graph.warm_up`."""

    @classmethod
    def of(cls, segment: Window, bottom: int, strip: int, halo: int, warm_up: int) -> "Descent":
        """The strips of `segment` in a raster of `bottom` rows."""
        return cls(max(0, segment.row - halo), bottom, strip, halo, warm_up)

    def start(self, row: int) -> int:
        """Where a pass begins that is to decide `row` and what is below.

        >>> [Descent(0, 4096, strip=64, halo=224, warm_up=256).start(row) for row in (0, 400, 1024)]
        [0, 0, 512]
        """
        strips = (row - self.halo - self.warm_up - self.top) // self.strip
        return self.top + max(0, strips) * self.strip

    def after(self, stop: int) -> int:
        """The row after the last strip that decides a row before `stop`.

        >>> [Descent(0, 4096, strip=64, halo=224, warm_up=256).after(row) for row in (64, 100, 4096)]
        [320, 384, 4096]
        """
        strips = -(-(stop + self.halo - self.top) // self.strip)
        return min(self.top + strips * self.strip, self.bottom)

    def rows(self, start: int) -> tuple[int, bool]:
        """Rows of the strip at `start`, and whether it is the raster's last."""
        stop = min(start + self.strip, self.bottom)
        return stop - start, stop == self.bottom


def lane_columns(block: Window, halo: int, width: int, stride: int) -> tuple[int, int]:
    """First column that a lane's pass sees, and the one after its last: inside the raster padded to the grid."""
    return max(0, block.col - halo), min(block.stop_col + halo, round_up(width, stride))


@dataclass(frozen=True, slots=True)
class Tile:
    """One pass of the network: it sees `read`, and its result counts over `core`."""

    read: Window
    """What the network sees, inside the raster."""
    core: Window
    """The pixels this pass decides, inside `read`."""


def exact_tiles(size: Size, part: Window, tile: int, halo: int) -> Iterator[list[Tile]]:
    """Tiles that touch `part`, row by row; their reads hold all that the network looks at.

    Cores are squares of `tile` from the raster's origin, the same whatever part is asked for. `tile` and `halo` are
    multiples of the network's stride, so every read starts at one too: the network's grid is the same in every tile.

    >>> [t.read.width for row in exact_tiles(Size(64, 256), Window(0, 0, 64, 256), tile=128, halo=32) for t in row]
    [160, 160]
    """
    first = part.aligned(tile)
    for row in range(first.row, part.stop_row, tile):
        cores = (Window(row, col, tile, tile).clipped(size) for col in range(first.col, part.stop_col, tile))
        yield [Tile(core.padded(halo).clipped(size), core) for core in cores]


@dataclass(frozen=True, slots=True)
class Axis:
    """The overlapping tiles along one axis of the raster, the same whatever block asks for them.

    Tile k covers ``[k * step, k * step + tile)``, clipped at the end; neighbours share `overlap` pixels::

        tile 0  |-----------|
        tile 1          |-----------|          step = tile - overlap
        tile 2                  |--------|     the last one ends with the raster
                        ^^^^ overlap

    >>> axis = Axis(length=200, tile=96, overlap=32)
    >>> axis.count, [axis.span(k) for k in range(axis.count)]
    (3, [(0, 96), (64, 160), (128, 200)])
    """

    length: int
    """Pixels of the raster along this axis."""
    tile: int
    """Pixels of a tile."""
    overlap: int
    """Pixels that two neighbouring tiles share; at most half a tile, so no pixel has three tiles."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.tile < 1 or not 0 <= 2 * self.overlap <= self.tile:
            raise ValueError(f"the overlap is from 0 to half the tile, got {self}")

    @property
    def step(self) -> int:
        """Distance from one tile to the next."""
        return self.tile - self.overlap

    @property
    def count(self) -> int:
        """Number of tiles."""
        return max(1, -(-(self.length - self.overlap) // self.step))

    def span(self, index: int) -> tuple[int, int]:
        """First pixel of tile `index` and the pixel after its last."""
        start = index * self.step
        return start, min(start + self.tile, self.length)

    def touching(self, start: int, stop: int) -> range:
        """Indices of the tiles that hold a pixel of ``[start, stop)``.

        >>> Axis(length=200, tile=96, overlap=32).touching(96, 128)
        range(1, 2)
        """
        first = max(0, (start - self.tile) // self.step + 1)
        return range(first, min(self.count, -(-stop // self.step)))
