"""How a raster is cut: blocks that tasks own, tiles that the network sees. Pure integer arithmetic.

A *block* is what one task owns: whole zarr chunks, anchored at the raster's origin. Inside it the network
runs tile by tile. In exact mode the cores of the tiles partition the block and every tile reads `halo`
more pixels on each side, clipped where the raster ends::

        block (owned)                 one tile
    +-----+-----+-----+        +---------------------+  read: core + halo,
    |     |     |     |        |  halo  +-----+      |  clipped at the raster's edge
    +-----+-----+-----+        |        |core |      |
    |     |     |     |        |        +-----+      |  core starts at a multiple of the
    +-----+-----+-----+        +---------------------+  network's stride, and so does read

In blended mode the tiles form one grid over the whole raster, each `tile` pixels long and `overlap` pixels
into the next one; a block computes every tile that touches it (`blending.py` has the weights).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fcn_batch.pipeline.geometry import Size, Window


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The blocks of a raster, in row-major order; `grid[index]` is a Window clipped at the raster's edge.

    >>> grid = BlockGrid(Size(5000, 9000), block=4096)
    >>> len(grid), grid[5]
    (6, Window(row=4096, col=8192, height=904, width=808))
    """

    size: Size
    """The raster."""
    block: int
    """Side of a block in pixels."""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"a block needs at least 1 pixel, got {self.block}")

    @property
    def columns(self) -> int:
        """Number of blocks side by side."""
        return -(-self.size.width // self.block)

    def __len__(self) -> int:
        return -(-self.size.height // self.block) * self.columns

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        row, col = divmod(index, self.columns)
        return Window(row * self.block, col * self.block, self.block, self.block).clipped(self.size)


@dataclass(frozen=True, slots=True)
class Tile:
    """One pass of the network: it sees `read`, and its result counts over `core`."""

    read: Window
    """What the network sees, inside the raster."""
    core: Window
    """The pixels this pass decides, inside `read`."""


def exact_tiles(size: Size, block: Window, tile: int, halo: int) -> Iterator[Tile]:
    """Tiles whose cores partition `block` and whose reads hold all that the network looks at.

    `tile` (side of a core) and `halo` are multiples of the network's stride, and `block` starts at one,
    so every read starts at one too: the network's grid is the same in every tile.

    >>> [t.read.width for t in exact_tiles(Size(64, 256), Window(0, 0, 64, 256), tile=128, halo=32)]
    [160, 160]
    """
    for row in range(block.row, block.stop_row, tile):
        for col in range(block.col, block.stop_col, tile):
            core = Window(row, col, tile, tile).intersection(block)
            yield Tile(core.padded(halo).clipped(size), core)


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
