"""The plan of a run: all that decides the bytes of the map, and nothing else. Stored, compared, resumed.

Two runs with equal fingerprints make the same map, whoever runs them, in whatever order and however often they
are interrupted. Paths are not part of the fingerprint: a mount may move.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.frozen import Frozen
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference, GroundControl
from fcn_batch.pipeline.core.model_card import Exactness, InputSpec
from fcn_batch.pipeline.core.source import Resampling, SourceFile
from fcn_batch.pipeline.core.stretch import Stretch
from fcn_batch.pipeline.core.tiling import Blend, BlockGrid
from fcn_batch.pipeline.core.validity import Rule

Way = Literal["stream", "tiles", "blend"]
"""Stream: row by row, each layer keeping what it needs. Tiles: with the halo around. Blend: overlapping tiles."""
Precision = Literal["fp32", "bf16", "fp16"]

Free = Literal["threads", "lane", "segment", "tile", "kernel"]
"""What a run may choose by the machine it is on, and then keeps; of the kernel all but the precision."""

_NOT_IDENTITY: Any = {"input": {"path": True, "sources": {"__all__": {"path"}}}, "model": {"path": True}}


class FileIdentity(Frozen):
    """One file of a raster, as it was when the plan was made."""

    name: str
    bytes: int
    modified_ns: int | None
    """None where the hash says it better: then a copy, or a touched file, is the same."""
    sha256: str | None = None
    """None where nobody asked for it: it takes reading the whole file."""
    tag: str | None = None
    """Of a remote file: its server's mark of this very content (ETag)."""
    listing: str | None = None
    """Of a folder, which counts as one file: SHA-256 of the names, sizes and times of all files in it."""


class InputIdentity(Frozen):
    """Which raster."""

    path: str
    files: tuple[FileIdentity, ...]
    """The file itself, and those beside it that decide pixels too: masks, side files, the sources of a VRT."""
    height: int
    width: int
    bands: int
    dtype: str
    crs_wkt: str | None
    transform: tuple[float, float, float, float, float, float]
    ground: GroundControl | None = None
    """Where pixels lie when no transform says it."""
    microns: float | None = None
    """Micrometres per pixel, of a slide that says so."""
    sources: Annotated[tuple[SourceFile, ...], Field(min_length=1)]
    """What opens it."""
    resampling: Resampling | None = None
    """How pixels on this grid are made of those of the files; None: they are those of the files."""
    nodata: tuple[float | None, ...] = ()
    """Nodata value of each band, as declared or given; of a mosaic those of the first file."""
    nodata_rule: Rule = "any"
    """Where several bands have one: whether any of them, or all, must have it."""

    @property
    def places(self) -> tuple[str, ...]:
        """Paths or URLs of what is opened."""
        return tuple(file.path for file in self.sources)

    @property
    def hashed(self) -> bool:
        """True when its files are known by their content."""
        return all(file.sha256 is not None for file in self.files)

    def has_pixels_of(self, other: "InputIdentity") -> bool:
        """True for the same files, wherever they lie, at the same level and on the same grid."""
        hidden = _NOT_IDENTITY["input"]
        return self.model_dump(exclude=hidden) == other.model_dump(exclude=hidden)

    @property
    def size(self) -> Size:
        """Height and width."""
        return Size(self.height, self.width)

    @property
    def georeference(self) -> GeoReference:
        """Reference system and transform."""
        return GeoReference(self.crs_wkt, self.transform)


class ModelIdentity(Frozen):
    """Which model."""

    path: str
    name: str
    version: str
    sha256: str


class Cut(Frozen):
    """How the raster is cut. All lengths are pixels, and on the network's grid."""

    way: Way
    chunk: int = Field(ge=1)
    """Side of what is written at once: a zarr chunk, or a shard of several; rows of a block."""
    lane: int = Field(ge=1)
    """Columns of a block: whole chunks."""
    segment: int = Field(ge=1)
    """Rows that one task does: whole chunks."""
    tile: int = Field(ge=1)
    """Stream: rows of a strip. Tiles: side of a core. Blend: side of a tile."""
    overlap: int = Field(ge=0)
    """Stream and tiles: the halo seen beyond what is decided. Blend: pixels shared by neighbouring tiles."""
    stride: int = Field(ge=1)
    """The network's grid."""
    blend: Blend | None
    """The window that overlapping tiles are blended with; None for the exact ways."""

    @model_validator(mode="after")
    def _on_the_grid(self) -> "Cut":
        for what in ("lane", "segment"):
            if getattr(self, what) % self.chunk:
                raise ValueError(f"a {what} of {getattr(self, what)} is not a whole number of chunks of {self.chunk}")
        for what in ("chunk", "tile", "overlap"):
            if getattr(self, what) % self.stride:
                raise ValueError(f"{what} {getattr(self, what)} is not a multiple of the stride {self.stride}")
        if (self.blend is None) == (self.way == "blend"):
            raise ValueError(f"way {self.way} with blend {self.blend}")
        return self

    @property
    def exact(self) -> bool:
        """True when the map equals that of the whole image in one pass."""
        return self.way != "blend"


class Kernel(Frozen):
    """What computes: another kind of device or version may round otherwise.

    What our code alone decides, as the memory format (channels last), is in its version. The versions of zarr and PROJ
    decide no class.
    """

    device: Literal["cpu", "cuda", "mps"]
    precision: Precision = "fp32"
    torch: str
    gdal: str
    """Decoders of lossy formats differ."""
    fcn_batch: str
    threads: int = Field(ge=1)
    """CPU threads of the network in each process: sums are split among them, so another number rounds otherwise."""
    instructions: str
    """Instruction set of the CPU, or name of the GPU."""
    cudnn: int | None = None
    """Version of what convolves on NVIDIA's GPUs; None elsewhere."""
    torchvision: str
    """Some networks are made of its layers."""
    rasterio: str
    """Its wheels bring their own libjpeg and openjpeg: the version of GDAL does not say which."""
    numpy: str
    """Makes the weights of overlapping tiles and sums their scores."""
    switches: tuple[str, ...] = ()
    """Environment variables that change how the libraries compute: ``ONEDNN_MAX_CPU_ISA=AVX2``."""

    def differences(self, other: "Kernel") -> list[str]:
        """How `other` differs, as `Plan.differences` tells it; threads do not count: they can be set."""
        mine, theirs = (kernel.model_dump(mode="json", exclude={"threads"}) for kernel in (self, other))
        return [f"kernel.{key}: {mine[key]}, now {theirs[key]}" for key in mine if mine[key] != theirs[key]]


class Plan(Frozen):
    """One run."""

    format: Literal[1] = 1
    input: InputIdentity
    model: ModelIdentity
    bands: Annotated[tuple[int, ...], Field(min_length=1)]
    """Raster bands, from 1, in the order the network wants them."""
    full_scale: float = Field(gt=0)
    """The raster value that corresponds to 1 in training, where 0 is 0."""
    stretch: Stretch | None = None
    """The raster values that correspond to 0 and 1 in training, where that is not 0 and `full_scale`."""
    area: Area | None = None
    """What a map is wanted of; there is no data elsewhere. None: all of it."""
    tissue: Area | None = None
    """Where a slide has tissue; there is no data elsewhere. None: all of it."""
    cut: Cut
    exactness: Exactness = "exact"
    """The word for the map; `windows` also where the network could do better, but an overlap was asked for."""
    kernel: Kernel
    inner: int | None = Field(default=None, ge=1)
    """Side of the chunks that a shard holds; None: what is written at once is a chunk of its own."""
    confidence: bool = False
    """True when a store of confidences is made beside the map."""

    @model_validator(mode="after")
    def _whole_chunks(self) -> "Plan":
        if self.inner is not None and self.cut.chunk % self.inner:
            raise ValueError(f"a shard of {self.cut.chunk} is not a whole number of chunks of {self.inner}")
        if (self.exactness == "windows") == self.cut.exact:
            raise ValueError(f"a map that is {self.exactness}, by {self.cut.way}")
        return self

    @property
    def areas(self) -> tuple[Area, ...]:
        """In all of these a pixel must lie to have a class."""
        return tuple(area for area in (self.area, self.tissue) if area is not None)

    @property
    def scaling(self) -> str:
        """What the raster's values are taken as, in words."""
        if self.stretch is None:
            return f"{self.full_scale:g} is white"
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in dict.fromkeys(self.stretch.ranges))
        return f"{ranges} {'are' if ',' in ranges else 'is'} black to white (--stretch {self.stretch.by})"

    def scaled(self, spec: InputSpec) -> InputSpec:
        """What a network wants to see, for this raster's values."""
        return self.stretch.applied(spec) if self.stretch else spec.model_copy(update={"full_scale": self.full_scale})

    @property
    def grid(self) -> BlockGrid:
        """The blocks."""
        return BlockGrid(self.input.size, self.cut.chunk, self.cut.lane)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the paths."""
        identity = self.model_dump(mode="json", exclude=_NOT_IDENTITY)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def settled_by(self, stored: "Plan", free: frozenset[Free]) -> "Plan":
        """This plan with what an earlier run chose for `free`, when it differs from that in nothing else."""
        kernel: dict[str, Any] = {"threads": stored.kernel.threads} if "threads" in free else {}
        if "kernel" in free:
            kernel = stored.kernel.model_dump(exclude={"precision"})
        lengths = ("lane", "segment", "tile") if self.cut.way == stored.cut.way else ()
        cut: dict[str, int] = {name: getattr(stored.cut, name) for name in lengths if name in free}
        changes = {"kernel": self.kernel.model_copy(update=kernel), "cut": self.cut.model_copy(update=cut)}
        settled = self.model_copy(update=changes)
        return settled if settled.fingerprint == stored.fingerprint else self

    def differs_by_machine(self, other: "Plan") -> bool:
        """True when nothing sets them apart but what computes, with the same precision."""
        return bool(self.kernel.differences(other.kernel)) and other.settled_by(self, frozenset({"kernel"})) != other

    def differences(self, other: "Plan") -> list[str]:
        """What sets `other` apart from this plan, one line each: ``cut.tile: 512, now 1024``."""
        mine = _flat(self.model_dump(mode="json", exclude=_NOT_IDENTITY))
        theirs = _flat(other.model_dump(mode="json", exclude=_NOT_IDENTITY))
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        return [f"{key}: {mine.get(key)}, now {theirs.get(key)}" for key in keys]


def _flat(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted place; what stands in lists of files is counted from 0."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            flat.update(_flat(dict(enumerate(value)), f"{prefix}{key}."))
        elif isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
