"""From a raster, a model and options to a Plan: everything decided, nothing computed."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import fcn_batch
from fcn_batch.pipeline.blending import Blend
from fcn_batch.pipeline.crs import row_areas_m2
from fcn_batch.pipeline.errors import OptionError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.gdal import gdal_version
from fcn_batch.pipeline.geometry import round_up
from fcn_batch.pipeline.plan import Cut, FileIdentity, InputIdentity, Kernel, ModelIdentity, Plan
from fcn_batch.pipeline.predictor import available_cpus, choose_device, describe_device, torch_version
from fcn_batch.pipeline.raster import RasterInfo, inspect
from fcn_batch.pipeline.tiling import Axis
from fcn_batch.pipeline.weights import ModelFile, load_model
from fcn_batch.workflows.bands import band_notes, choose_bands, choose_full_scale
from fcn_batch.workflows.models import find_model
from fcn_batch.workflows.steps import cache_size_mb

CHUNK = 2048
_BLOCK_CHUNKS = 2
_HALOS_PER_BLOCK = 8  # a block is at least this many halos long: reading costs at most (1 + 2/8) ** 2
_TILE_BYTES = 3 * 2**29
_BLENDED_TILE = 1024
_GSD_TOLERANCE = 2.0
_THREADS_PER_CPU = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose about how a raster is classified."""

    model: str
    bands: tuple[int, ...] | None = None
    full_scale: float | None = None
    tile: int | None = None
    overlap: int | None = None
    """None: the model's halo, exact."""
    blend: Blend | None = None
    """None: hann, where tiles overlap."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads of the network in each process; None: all CPUs, shared among the processes."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan and what was known when it was made."""

    plan: Plan
    info: RasterInfo
    model: ModelFile
    device: str
    bytes_per_pixel: int
    """Of the network, see Fcn."""
    notes: list[str] = field(default_factory=list)
    """One line each: what a user should know before trusting the map."""

    @property
    def forward_share(self) -> float:
        """Pixels the network sees for each pixel of the raster, in exact mode or blended."""
        cut, size = self.plan.cut, self.info.size
        seen = _seen_exact if cut.exact else _seen_blended
        return seen(size.height, cut) * seen(size.width, cut) / size.pixels  # every row of tiles is cut alike

    @property
    def memory(self) -> int:
        """Bytes that one process needs beside the libraries: two blocks, one tile, blended sums, the read cache."""
        cut, size = self.plan.cut, self.info.size
        halo = 2 * cut.overlap if cut.exact else 2 * cut.tile
        block = min(cut.block + halo, size.height) * min(cut.block + halo, size.width)
        tile_side = cut.tile + (halo if cut.exact else 0)
        tile = min(tile_side, size.height) * min(tile_side, size.width)
        values = 4 if self.info.dtype == "float32" else 1 if self.info.dtype == "uint8" else 2
        # the rows carried to the next row of tiles keep the sums of the whole row before it alive
        rows, classes = min(cut.tile, cut.block, size.height), len(self.model.card.legend)
        sums = 0 if cut.exact else 2 * 4 * classes * rows * min(cut.block, size.width)
        arrays = 2 * block * (values * len(self.plan.bands) + 3) + tile * self.bytes_per_pixel + sums
        return arrays + cache_size_mb(self.info, self.plan) * 2**20


def prepare(path: Path, options: Options, *, processes: int = 1) -> Prepared:
    """Decide everything about a run of `path` on so many processes of this machine.

    InputError, ModelError or OptionError with the reason.
    """
    info = inspect(path)
    model = find_model(options.model)
    _, network = load_model(model.path, sha256=model.sha256)
    device = choose_device(options.device)
    spec = model.card.input
    notes: list[str] = []
    bands = choose_bands(info, spec, options.bands)
    full_scale = choose_full_scale(info, spec, options.full_scale)
    cut = choose_cut(network, options, notes)
    plan = Plan(
        input=identify(info),
        model=ModelIdentity(
            path=str(model.path), name=model.card.name, version=model.card.version, sha256=model.sha256
        ),
        bands=bands,
        full_scale=full_scale,
        cut=cut,
        kernel=Kernel(
            device="cuda" if device.startswith("cuda") else "mps" if device == "mps" else "cpu",
            torch=torch_version(),
            gdal=gdal_version(),
            fcn_batch=fcn_batch.__version__,
            threads=choose_threads(options.threads, device, processes),
            instructions=describe_device(device),
        ),
    )
    notes += band_notes(info, spec, options.bands) + _georeference_notes(info) + _resolution_notes(info, model)
    return Prepared(plan, info, model, device, network.bytes_per_pixel, notes)


def identify(info: RasterInfo) -> InputIdentity:
    """The raster's identity: its files by size and time, and its grid."""
    files = []
    for path in map(Path, info.files):
        status = path.stat()
        files.append(FileIdentity(name=path.name, bytes=status.st_size, modified_ns=status.st_mtime_ns))
    return InputIdentity(
        path=info.path,
        files=tuple(files),
        height=info.size.height,
        width=info.size.width,
        bands=info.bands,
        dtype=info.dtype,
        crs_wkt=info.georeference.crs_wkt,
        transform=info.georeference.transform,
    )


def choose_threads(wanted: int | None, device: str, processes: int) -> int:
    """CPU threads of the network in each process; 1 where a GPU computes."""
    cpus = available_cpus()
    if wanted is not None and not 1 <= wanted <= _THREADS_PER_CPU * cpus:
        raise OptionError(f"--threads {wanted}: give 1 to {_THREADS_PER_CPU * cpus} on this machine of {cpus} CPUs")
    if device != "cpu":
        return 1
    return wanted or max(1, cpus // processes)


def choose_cut(network: Fcn, options: Options, notes: list[str]) -> Cut:
    """Chunks, blocks and tiles that suit the network; what was rounded is said in `notes`."""
    stride, halo = network.stride, network.halo
    chunk = round_up(CHUNK, stride)
    block = chunk * max(_BLOCK_CHUNKS, -(-_HALOS_PER_BLOCK * halo // chunk))
    tile = _on_grid("--tile", options.tile, stride, notes)
    if tile is not None and tile > block:
        raise OptionError(f"{_as_given('--tile', options.tile, tile)}: at most the block of {block} pixels")
    if options.overlap is None:
        if options.blend is not None:
            raise OptionError(f"--blend {options.blend}: the exact result has nothing to blend; give --overlap PIXELS")
        tile = tile or _largest_tile(block, halo, stride, network.bytes_per_pixel)
        return Cut(chunk=chunk, block=block, tile=tile, overlap=halo, stride=stride, blend=None)
    tile, blend = tile or _BLENDED_TILE, options.blend or "hann"
    overlap = _on_grid("--overlap", options.overlap, stride, notes) or 0
    if 2 * overlap > tile:
        given = _as_given("--overlap", options.overlap, overlap)
        raise OptionError(f"{given}: at most half of the tile of {tile}; give a larger --tile")
    notes.append(
        f"approximate: tiles of {tile} overlap by {overlap} and are blended ({blend}); --overlap auto is exact"
    )
    return Cut(chunk=chunk, block=block, tile=tile, overlap=overlap, stride=stride, blend=blend)


def _on_grid(option: str, value: int | None, stride: int, notes: list[str]) -> int | None:
    if value is None:
        return None
    if value < 0 or (option == "--tile" and value < 1):
        least = "a positive number of" if option == "--tile" else "0 or more"
        raise OptionError(f"{option} {value}: give {least} pixels")
    rounded = round_up(value, stride)
    if rounded != value:
        notes.append(f"{option} {value} was rounded up to {rounded}, a multiple of the model's stride {stride}")
    return rounded


def _as_given(option: str, value: int | None, rounded: int) -> str:
    """The option as the user wrote it, and what became of its value."""
    return f"{option} {value}" + (f" (rounded up to {rounded})" if rounded != value else "")


def _largest_tile(block: int, halo: int, stride: int, bytes_per_pixel: int) -> int:
    """The largest halving of the block whose forward pass stays within the memory for a tile."""
    tile = block
    while tile % (2 * stride) == 0 and (tile + 2 * halo) ** 2 * bytes_per_pixel > _TILE_BYTES and tile > halo:
        tile //= 2
    return tile


def ground_sample_distance(info: RasterInfo) -> float | None:
    """Metres per pixel in the raster's middle row; None when its place on the Earth is not known."""
    areas = row_areas_m2(info.georeference, info.size)
    return None if areas is None else math.sqrt(areas[info.size.height // 2])


def _seen_exact(length: int, cut: Cut) -> int:
    """Pixels along an axis that the network sees in all blocks: cores with their halos, padded to the stride."""
    blocks = ((start, min(start + cut.block, length)) for start in range(0, length, cut.block))
    cores = ((core, min(core + cut.tile, stop)) for start, stop in blocks for core in range(start, stop, cut.tile))
    spans = ((max(core - cut.overlap, 0), min(stop + cut.overlap, length)) for core, stop in cores)
    return sum(round_up(stop - start, cut.stride) for start, stop in spans)


def _seen_blended(length: int, cut: Cut) -> int:
    """Pixels along an axis that the network sees in all blocks: a tile that touches two is seen twice."""
    axis = Axis(length, cut.tile, cut.overlap)
    blocks = ((start, min(start + cut.block, length)) for start in range(0, length, cut.block))
    spans = (axis.span(tile) for start, stop in blocks for tile in axis.touching(start, stop))
    return sum(round_up(stop - start, cut.stride) for start, stop in spans)


def _georeference_notes(info: RasterInfo) -> list[str]:
    if info.has_gcps:
        return ["the raster has ground control points and no transform: the map is in pixel coordinates"]
    if info.georeference.crs_wkt is None:
        return ["the raster has no coordinate reference system: neither has the map, and areas are not known"]
    return []


def _resolution_notes(info: RasterInfo, model: ModelFile) -> list[str]:
    gsd, trained = ground_sample_distance(info), model.card.input.gsd_m
    if gsd is None or trained / _GSD_TOLERANCE <= gsd <= trained * _GSD_TOLERANCE:
        return []
    name = model.card.name
    return [f"{name} was trained at {trained:g} m per pixel, this raster has {gsd:.3g} m: expect poor classes"]


def describe(prepared: Prepared) -> list[tuple[str, str]]:
    """What `fcn-batch plan` prints: label and value, one pair a line."""
    plan, info, card = prepared.plan, prepared.info, prepared.model.card
    cut, size = plan.cut, info.size
    kind = "exact" if cut.exact else f"approximate, blended ({cut.blend})"
    what = f"cores of {cut.tile} px with a halo of" if cut.exact else f"{cut.tile} px, overlapping by"
    crs = (info.georeference.crs_wkt or "none").split('"')
    return [
        ("input", f"{info.path}: {size.height} x {size.width} px, {info.bands} bands of {info.dtype}"),
        ("crs", crs[1] if len(crs) > 1 else crs[0]),
        ("model", f"{card.name} {card.version}: {len(card.legend)} classes, stride {card.stride}"),
        (
            "bands",
            ", ".join(f"{b.name} = band {n}" for b, n in zip(card.input.bands, plan.bands, strict=True)),
        ),
        ("result", kind),
        (
            "blocks",
            f"{len(plan.grid)} of {cut.block} px ({cut.block // cut.chunk}x{cut.block // cut.chunk} chunks)",
        ),
        ("tiles", f"{what} {cut.overlap} px"),
        ("cost", f"{prepared.forward_share:.2f} forward passes per pixel"),
        ("memory", f"about {prepared.memory / 2**30:.1f} GiB per process, beside the libraries"),
        ("output", f"{size.pixels / 1e6:,.1f} MB before compression, in zarr and in GeoTIFF"),
        (
            "device",
            f"{prepared.device} ({plan.kernel.instructions}), {plan.kernel.precision}, {plan.kernel.threads} threads",
        ),
        ("fingerprint", plan.fingerprint),
        *(("note", note) for note in prepared.notes),
    ]
