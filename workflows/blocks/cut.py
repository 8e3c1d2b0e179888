"""How a raster is cut for a network on a machine: which way, lanes, segments, strips or tiles; and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.plan import Cut
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.core.tiling import Axis, Blend, Descent, exact_tiles, lane_columns
from fcn_batch.pipeline.network.confidence import PLANES, confidence_bytes
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.raster.clip import touched
from fcn_batch.workflows.blocks.reading import slab_rows

CHUNK = 2048
_LANE = 2**18
"""Columns of the widest lane."""
_STRIP_PIXELS = {"cpu": 2**19, "mps": 2**20, "cuda": 2**23}
"""Pixels of a strip: on a CPU enough for all threads, few enough to stay near the cache; on a GPU enough to fill it."""
_HALOS_PER_SEGMENT = 16
"""A segment is at least this many halos high: what its pass sees beyond it costs a sixteenth at most, twice."""
_SEGMENTS_PER_PROCESS = 2
_TILE = 1024
_COPIES_OF_WEIGHTS = 2
_KEPT_PAGES = 2
"""Bytes in use for one that is alive at once: the C library keeps what is freed, in pieces (measured: 1.3 to 2.1)."""
_LOADING = 2**20


@dataclass(frozen=True, slots=True)
class Network:
    """What the cut wants to know of a network."""

    bands: int
    classes: int
    stride: int
    halo: int | None
    """None: it looks at the whole image."""
    graph: Graph | None
    """None: it cannot be streamed."""
    obstacles: tuple[str, ...]
    """Why not."""
    weights: int
    """Bytes of its weights as loaded."""
    itemsize: int
    """Bytes of a number in the precision it will run in."""
    confidence: bool = False
    """True when it also says how sure it is."""
    tested: bool = False
    """True when how far it looks was found by trying."""

    def bytes_of(self, rows: int, cols: int) -> int:
        """Bytes that it takes to look at so many pixels at once."""
        if self.graph is not None:
            return self.graph.bytes_of_strip(rows, cols, self.itemsize)
        # not known: about that of a full VGG16 or ResNet50 at their widest
        return rows * cols * (512 + 4 * self.classes + 8)


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to work with."""

    bytes: int
    """Memory for each process."""
    processes: int
    kind: str
    """cpu, cuda or mps."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said about the cut; None: choose."""

    tile: int | None = None
    overlap: int | None = None
    blend: Blend | None = None
    shard: int | None = None
    columns: int | None = None
    """No lane needs to be wider than these of the raster's."""


def chunk_of(stride: int) -> int:
    """Side of a chunk of the store, for a network of this stride.

    >>> chunk_of(32), chunk_of(48)
    (2048, 2064)
    """
    return round_up(CHUNK, stride)


def choose_cut(network: Network, info: RasterInfo, wish: Wish, room: Room, notes: list[str]) -> Cut:
    """The cut that suits; what was rounded, or is only approximate, is said in `notes`. OptionError with the reason."""
    tile, side = _on_grid("--tile", wish.tile, network.stride, notes), _written(wish.shard, network.stride)
    if wish.overlap is not None or network.halo is None:
        cut = _blended(network, info, wish, side, tile, room, notes)
    elif wish.blend is not None:
        raise OptionError(
            "blend-without-overlap",
            "--blend {blend}: the exact result has nothing to blend; give --overlap PIXELS",
            blend=wish.blend,
        )
    elif tile is None and network.graph is not None:
        cut = _streamed(network, info, side, wish.columns, room)
    else:
        if network.graph is None:
            known = "exact (tested): how far it looks was found by trying; " if network.tested else ""
            notes.append(f"{known}in tiles with a halo: it cannot be streamed because of {_told(network.obstacles)}")
        cut = _tiled(network, info, side, tile, room)
    needed = memory(network, info, cut)
    if needed > room.bytes:
        raise OptionError(
            "memory-short",
            "--memory: {given} is not enough for each process, {needed} would be, with {way} of {tile} px in lanes of "
            "{lane} px; give more memory, fewer --workers or a smaller --shard",
            given=_mb(room.bytes),
            needed=_mb(needed),
            way=cut.way,
            tile=cut.tile,
            lane=min(cut.lane, info.size.width),
        )
    return cut


def _written(shard: int | None, stride: int) -> int:
    """Side of what is written at once; OptionError for a shard that is not whole chunks."""
    chunk = chunk_of(stride)
    if shard is None:
        return chunk
    if shard < 1 or shard % chunk:
        raise OptionError(
            "option-value",
            "{option} {value}: give a multiple of the chunk of {chunk} pixels, such as {fits}",
            option="--shard",
            value=shard,
            chunk=chunk,
            fits=round_up(max(shard, chunk), chunk),
        )
    return shard


def _streamed(network: Network, info: RasterInfo, chunk: int, enough: int | None, room: Room) -> Cut:
    """Lanes as wide as memory allows, the raster's width if it can be; strips of the size the device likes best.

    `chunk`: side of what is written at once. `enough`: columns that are enough for a lane, if not as many as can be.
    """
    size, stride, halo = info.size, network.stride, network.halo or 0
    widest = round_up(min(_LANE, enough or size.width), chunk)
    lanes, most, lane = -(-size.width // widest), -(-size.width // chunk), widest
    if enough is None:
        lane = round_up(-(-size.width // lanes), chunk)  # of one width
    while True:
        columns = min(lane + 2 * halo, round_up(size.width, stride))
        strip = max(_STRIP_PIXELS[room.kind] // columns // stride * stride, stride)
        strip = min(strip, round_up(size.height, stride))
        segment = _segment(size, chunk, halo, lanes, room)
        cut = Cut(
            way="stream", chunk=chunk, lane=lane, segment=segment, tile=strip, overlap=halo, stride=stride, blend=None
        )
        while memory(network, info, cut) > room.bytes and cut.tile >= 2 * stride:
            cut = cut.model_copy(update={"tile": cut.tile // 2 // stride * stride})
        if memory(network, info, cut) <= room.bytes or lanes == most:
            return cut
        lanes += 1
        lane = round_up(-(-size.width // lanes), chunk)


def _segment(size: Size, chunk: int, halo: int, lanes: int, room: Room) -> int:
    """Rows of a segment: the whole height for one process, else as many segments as keep all of them busy."""
    wanted = 1 if room.processes == 1 else -(-_SEGMENTS_PER_PROCESS * room.processes // lanes)
    least = max(chunk, _HALOS_PER_SEGMENT * halo)
    return round_up(max(-(-size.height // wanted), min(least, size.height)), chunk)


def _in_tiles(network: Network, info: RasterInfo, chunk: int, tile: int, overlap: int, room: Room) -> Cut:
    """Exact tiles, in one lane if it can be."""
    return Cut(
        way="tiles",
        chunk=chunk,
        lane=round_up(min(info.size.width, _LANE), chunk),
        segment=_segment(info.size, chunk, overlap, 1, room),
        tile=tile,
        overlap=overlap,
        stride=network.stride,
        blend=None,
    )


def _tiled(network: Network, info: RasterInfo, chunk: int, tile: int | None, room: Room) -> Cut:
    """Return the cut in exact tiles of side `tile`, if the user said it, or as large as memory allows."""
    stride = network.stride
    cut = _in_tiles(network, info, chunk, tile or chunk_of(stride), network.halo or 0, room)
    while tile is None and cut.tile % (2 * stride) == 0 and memory(network, info, cut) > room.bytes:
        cut = cut.model_copy(update={"tile": cut.tile // 2})
    return cut


def _blended(
    network: Network, info: RasterInfo, wish: Wish, chunk: int, tile: int | None, room: Room, notes: list[str]
) -> Cut:
    """Return the cut in overlapping tiles of side `tile`, if the user said it."""
    stride, blend = network.stride, wish.blend or "hann"
    side = tile or round_up(_TILE, stride)
    overlap = _on_grid("--overlap", wish.overlap, stride, notes)
    if overlap is None:
        overlap = side // 4 // stride * stride
    if 2 * overlap > side:
        raise OptionError(
            "option-value",
            "{option} {value} ({overlap} on the model's grid): at most half of the tile of {tile}; give a larger tile",
            option="--overlap",
            value=wish.overlap,
            overlap=overlap,
            tile=side,
        )
    why = f"--overlap auto is {'exact (tested)' if network.tested else 'exact'}"
    if network.halo is None:
        why = f"no halo is known to be enough, because of {_told(network.obstacles)}"
    notes.append(f"windows: the map is the blend ({blend}) of windows of {side} px that overlap by {overlap}; {why}")
    exact = _in_tiles(network, info, chunk, side, overlap, room)
    return exact.model_copy(update={"way": "blend", "blend": blend})


def _told(obstacles: tuple[str, ...]) -> str:
    """The first of them, and how many more."""
    if not obstacles:
        return "what it looks at"
    return obstacles[0] + (f" and {len(obstacles) - 1} more" if len(obstacles) > 1 else "")


def _on_grid(option: str, value: int | None, stride: int, notes: list[str]) -> int | None:
    if value is None:
        return None
    if value < 0 or (option == "--tile" and value < 1):
        least = "at least one pixel" if option == "--tile" else "0 or more pixels"
        raise OptionError("option-value", "{option} {value}: give {least}", option=option, value=value, least=least)
    rounded = round_up(value, stride)
    if rounded != value:
        notes.append(f"{option} {value} was rounded up to {rounded}, a multiple of the model's stride {stride}")
    return rounded


def _mb(count: int) -> str:
    return f"{-(-count // 10**6):,} MB"


def row_bytes(network: Network, info: RasterInfo, cut: Cut) -> int:
    """Bytes that a row of pixels of a lane takes, with its mask."""
    return _KEPT_PAGES * _columns(info, cut) * ({"uint8": 1, "float32": 4}.get(info.dtype, 2) * network.bands + 1)


def memory(network: Network, info: RasterInfo, cut: Cut) -> int:
    """Bytes that one process needs beside the libraries: weights, what the network looks at, rows read and written."""
    size, cols = info.size, _columns(info, cut)
    if cut.way == "stream":
        seen = network.bytes_of(cut.tile, cols)
        held = cut.tile + (network.graph.lag(cut.tile) if network.graph else 0)
        scaled = 2 * 4 * network.bands * cut.tile * cols
    else:
        side = cut.tile + (2 * cut.overlap if cut.exact else 0)
        seen, held, scaled = network.bytes_of(side, side), side + cut.tile, 2 * 4 * network.bands * side**2
    rows = (held + 3 * slab_rows(info)) * row_bytes(network, info, cut)
    sums = 0 if cut.exact else 4 * 4 * network.classes * (cut.tile + cut.overlap) * cols
    layers = 1 + PLANES if network.confidence else 1
    blocks = (3 * layers + 1) * min(cut.chunk, size.height) * min(cut.lane, size.width)  # and why there is no data
    if network.confidence:
        seen += confidence_bytes(network.classes, cut.tile * (cut.tile if cut.way == "tiles" else cols))
    return _COPIES_OF_WEIGHTS * network.weights + _KEPT_PAGES * (seen + scaled) + rows + sums + blocks + _LOADING


def _columns(info: RasterInfo, cut: Cut) -> int:
    """Of the raster that a lane sees."""
    beyond = cut.overlap if cut.exact else cut.tile
    return min(min(cut.lane, info.size.width) + 2 * beyond, round_up(info.size.width, cut.stride))


def forwarded(network: Network, size: Size, cut: Cut) -> int:
    """Pixels that the network sees in a whole run without interruptions and without rows it may leave out."""
    lanes = [Window(0, col, 1, cut.lane).clipped(size) for col in range(0, size.width, cut.lane)]
    segments = [Window(row, 0, cut.segment, 1).clipped(size) for row in range(0, size.height, cut.segment)]
    if cut.way == "stream":
        rows = sum(_streamed_rows(network, size, cut, segment) for segment in segments)
        return rows * sum(right - left for left, right in (_lane(lane, cut, size) for lane in lanes))
    count = _exact_length if cut.way == "tiles" else _blended_length
    return sum(count(size.height, s.row, s.stop_row, cut) for s in segments) * sum(
        count(size.width, lane.col, lane.stop_col, cut) for lane in lanes
    )


def _lane(lane: Window, cut: Cut, size: Size) -> tuple[int, int]:
    return lane_columns(lane, cut.overlap, size.width, cut.stride)


def _streamed_rows(network: Network, size: Size, cut: Cut, segment: Window) -> int:
    """Rows of the strips that go in until the last row of a segment has come out."""
    assert network.graph is not None, "only a graph is streamed"
    bottom, lag = round_up(size.height, cut.stride), network.graph.lag(cut.tile)
    top = Descent.of(segment, bottom, cut.tile, cut.overlap, warm_up=0).top
    return min(round_up(segment.stop_row - top + lag, cut.tile), bottom - top)


def _exact_length(length: int, start: int, stop: int, cut: Cut) -> int:
    """Pixels along an axis that tiles see which touch ``[start, stop)``: cores with their halos, on the grid."""
    rows = exact_tiles(Size(length, 1), Window(start, 0, stop - start, 1), cut.tile, cut.overlap)
    return sum(round_up(row[0].read.height, cut.stride) for row in rows)


def _blended_length(length: int, start: int, stop: int, cut: Cut) -> int:
    """Pixels along an axis that blended tiles see which touch ``[start, stop)``, or a cell beyond to upsample from."""
    axis = Axis(length, cut.tile, cut.overlap)
    spans = (axis.span(tile) for tile in axis.touching(max(start - 1, 0), min(stop + 1, length)))
    return sum(round_up(stop - start, cut.stride) for start, stop in spans)


def lane_for(areas: Sequence[Area], size: Size, chunk: int, halo: int) -> int | None:
    """Return the columns of lanes, whole chunks, for which the network sees the fewest pixels; None: as many as can be.

    Narrow lanes leave out more of what is not wanted, wide ones share more halos. Counted are blocks (rows of chunks of
    a lane) that an area touches, with the halo beside them, and above and below each run of them.
    """
    if not areas:
        return None
    wanted = touched(areas, size, chunk)
    costs = {}
    for chunks in range(wanted.shape[1], 0, -1):
        lanes = np.pad(wanted, ((1, 1), (0, -wanted.shape[1] % chunks)))
        blocks = np.logical_or.reduce(lanes.reshape(len(lanes), -1, chunks), axis=2)
        begun = np.count_nonzero(blocks[1:] & ~blocks[:-1])
        costs[chunks] = int(blocks.sum() * chunk + begun * 2 * halo) * (chunks * chunk + 2 * halo)
    return chunk * min(costs, key=lambda chunks: costs[chunks])
