"""From a raster, a model and options to a Plan: everything decided, nothing computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import ModelError, OptionError
from fcn_batch.pipeline.core.geometry import round_up
from fcn_batch.pipeline.core.location import Input
from fcn_batch.pipeline.core.model_card import Factory, ModelCard
from fcn_batch.pipeline.core.plan import ModelIdentity, Plan, Precision
from fcn_batch.pipeline.core.source import RasterInfo, RasterSource, cache_needed
from fcn_batch.pipeline.core.tiling import Blend
from fcn_batch.pipeline.core.tolerance import FAIL, OnError, TolerantSource
from fcn_batch.pipeline.core.validity import NodataOption, Rule
from fcn_batch.pipeline.network.capture import graph_for
from fcn_batch.pipeline.network.device import (
    check_precision,
    choose_device,
    fast_precision,
    free_memory,
    torch_kind,
)
from fcn_batch.pipeline.network.weights import ModelFile, structure
from fcn_batch.workflows.blocks.cut import (
    Network,
    Room,
    Wish,
    choose_cut,
    chunk_of,
    forwarded,
    lane_for,
    memory,
    row_bytes,
)
from fcn_batch.workflows.blocks.kernel import kernel_here
from fcn_batch.workflows.blocks.reading import slab_rows, slabs_ahead
from fcn_batch.workflows.console.logs import LOG
from fcn_batch.workflows.inputs.area import Box, choose_area, find_tissue
from fcn_batch.workflows.inputs.bands import band_notes, choose_bands, choose_scaling, numbered
from fcn_batch.workflows.inputs.identity import check_sums, identify
from fcn_batch.workflows.inputs.resolution import georeference_notes, ground_sample_distance, resolution_note
from fcn_batch.workflows.inputs.sources import at_microns, at_resolution, find_source, in_colours
from fcn_batch.workflows.learning.choice import choose_model, is_near, misfit
from fcn_batch.workflows.learning.models import find_model
from fcn_batch.workflows.processes.topology import Each, available_cpus

_THREADS_PER_CPU = 4
_SHARE_OF_FREE_MEMORY = 0.5
_LEAST_MEMORY = 2**30
_MOST_DISAGREEMENT = 0.005
"""Share of pixels that may get another class from bfloat16 than from float32 before `auto` leaves it alone."""
_PROCESSES_OF_A_CLUSTER = 8
"""To make segments for: how many workers a scheduler has is not known when the plan is made."""


_SHARED = Each()


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose about how a raster is classified."""

    model: str
    bands: tuple[int | str, ...] | None = None
    """By number, from 1, or name."""
    full_scale: float | None = None
    stretch: str | None = None
    """How the raster's values become those of training (stretching.py); None: by the full scale."""
    tile: int | None = None
    overlap: int | None = None
    """None: the model's halo, exact."""
    blend: Blend | None = None
    """None: hann, where tiles overlap."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads of the network in each process; None: one for each core, shared among the processes."""
    precision: Precision | None = None
    """None: bf16 where it is fast and the model's card says that it changes few classes, else fp32."""
    aoi: Path | None = None
    """Polygons, of whose area a map is wanted."""
    level: int | None = None
    """Of the input's own pyramid; None: the finest, or what suits `mpp`."""
    mpp: float | None = None
    """Micrometres per pixel, of a slide; None: as it is."""
    tissue: Literal["auto", "off"] = "auto"
    """auto: leave out what of a slide is glass."""
    resample: Literal["auto", "off"] = "off"
    """auto: bring the input to the resolution that the model was trained at."""
    nodata: str | None = None
    """Values that mean no data, as `nodata_values` reads them, in place of the file's; None: as the file says."""
    nodata_rule: Rule | None = None
    """Where several bands have one: whether any of them, or all, must have it; None: by the pixel type."""
    bbox: Box | None = None
    """Or a box: west, south, east, north, in the raster's coordinates."""
    memory: int | None = None
    """Bytes for each process; None: half of what is free."""
    shard: int | None = None
    """Side of the store's files, each of several chunks; None: every chunk is a file."""
    confidence: bool = False
    """True: also store how sure the network is."""
    verify_input: bool = False
    """True: the input is what is in its files, not their times, and what checksum files say of them."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan and what was known when it was made."""

    plan: Plan
    info: RasterInfo
    model: ModelFile
    device: str
    network: Network
    budget: int
    """Bytes that each process may take."""
    notes: list[str] = field(default_factory=list)
    """One line each: what a user should know before trusting the map."""

    @property
    def forward_share(self) -> float:
        """Pixels the network sees for each pixel of the raster."""
        return forwarded(self.network, self.info.size, self.plan.cut) / self.info.size.pixels

    @property
    def memory(self) -> int:
        """Bytes that one process needs beside the libraries."""
        return self._least + (self.ahead - 1) * self._slab

    @property
    def ahead(self) -> int:
        """Slabs of rows that each process reads at once, while another one is used."""
        return slabs_ahead(self.info, self._slab, self.budget - self._least)

    @property
    def _least(self) -> int:
        return memory(self.network, self.info, self.plan.cut)

    @property
    def _slab(self) -> int:
        """Bytes that one more of them takes, with its blocks in GDAL's cache."""
        rows = slab_rows(self.info)
        return rows * row_bytes(self.network, self.info, self.plan.cut) + cache_needed(self.info, rows, self.info.bands)


def prepare(
    given: Input,
    options: Options,
    *,
    processes: int | None = 1,
    each: Each = _SHARED,
    known: Sequence[Plan] = (),
    on_error: OnError = FAIL,
) -> Prepared:
    """Decide everything about a run of `given` on so many processes; None: as many as a scheduler has.

    They share this machine, unless `each` says what they have. `known` are plans of earlier runs: what was measured
    of the same input is not measured again; `on_error` says what to do where it cannot be read to measure it.
    InputError, ModelError or OptionError with the reason.
    """
    device = choose_device(options.device)
    notes: list[str] = []
    source, model, wanted = _matched(given, options, notes)
    info, spec = source.info, model.card.input
    network, precision = _load(model, options, device)
    bands = choose_bands(info, spec, wanted)
    identity = identify(info, hashed=options.verify_input)
    if options.verify_input:
        check_sums(info, identity)
    known = [plan for plan in known if plan.input.has_pixels_of(identity)]
    measured = TolerantSource(source, on_error)
    full_scale, stretch = choose_scaling(measured, spec, bands, (options.full_scale, options.stretch), known)
    here = 1 if each.apart else processes or 1
    budget = options.memory or each.memory or memory_budget(device, here)
    room = Room(budget, processes or _PROCESSES_OF_A_CLUSTER, torch_kind(device))
    area = choose_area(info, options.aoi, options.bbox)
    tissue, said = (None, "") if options.tissue == "off" else find_tissue(identity, bands, known, on_error)
    notes += [said] if said else []
    chunk = chunk_of(network.stride)
    columns = lane_for([one for one in (area, tissue) if one is not None], info.size, chunk, network.halo or 0)
    wish = Wish(options.tile, options.overlap, options.blend, options.shard, columns)
    cut = choose_cut(network, info, wish, room, notes)
    plan = Plan(
        input=identity,
        model=ModelIdentity(
            path=str(model.path), name=model.card.name, version=model.card.version, sha256=model.sha256
        ),
        bands=bands,
        full_scale=full_scale,
        stretch=stretch,
        area=area,
        tissue=tissue,
        cut=cut,
        exactness="windows" if not cut.exact else "exact (tested)" if network.tested else "exact",
        kernel=kernel_here(device, precision, choose_threads(options.threads, device, here, each.threads)),
        inner=None if cut.chunk == chunk else chunk,
        confidence=options.confidence,
    )
    if stretch is not None:
        notes.append(plan.scaling)
    notes += band_notes(info, spec, wanted) + georeference_notes(info)
    gsd = ground_sample_distance(info)
    if options.model != "auto" and gsd is not None and not is_near(gsd, model):  # auto says it itself
        notes.append(misfit(gsd, model))
    LOG.info("%s: plan %s, %s on %s", info.path, plan.fingerprint, model.path, device)
    LOG.debug("%s", plan)
    return Prepared(plan, info, model, device, network, budget, notes)


def _matched(
    given: Input, options: Options, notes: list[str]
) -> tuple[RasterSource, ModelFile, tuple[int, ...] | None]:
    """The source at the resolution and in the colours that the model wants, the model, and the bands asked for."""
    if options.level is not None and options.mpp is not None:
        raise OptionError(
            "option-conflict",
            "{one} with {other}: give one of them",
            one=f"--level {options.level}",
            other=f"--mpp {options.mpp:g}",
        )
    named = None if options.model == "auto" else find_model(options.model)
    source = find_source(given, options.level, NodataOption(options.nodata, options.nodata_rule))
    if source.info.palette and (named is None or len(named.card.input.bands) > 1):
        source = in_colours(source)
    if options.mpp is not None:
        source = at_microns(source, options.mpp)
    wanted = None if options.bands is None else numbered(source.info, options.bands)
    if named is None:
        named, why = choose_model(source.info, wanted)
        notes.append(why)
    if options.resample == "auto" and options.mpp is None:
        source = at_resolution(source, named.card.input.gsd_m)
    if source.info.resampling is not None or any(file.level for file in source.info.sources):
        notes.append(resolution_note(source.info))
    return source, named, wanted


def _load(model: ModelFile, options: Options, device: str) -> tuple[Network, Precision]:
    """What the plan must know of a model; ModelError when a map of bytes cannot hold its classes."""
    if not model.card.legend.fits_a_map:
        raise ModelError(
            "classes-beyond-bytes",
            "{path}: has {count} classes with ids up to {most}; a map of bytes holds ids 0 to {last}: train it further "
            "for fewer classes",
            path=model.path,
            count=len(model.card.legend),
            most=max(model.card.legend.ids),
            last=NODATA - 1,
        )
    if len(model.card.legend) < 2:
        raise ModelError(
            "one-class",
            "{path}: scores one class, so every pixel would get it; let the network give a second channel for "
            "everything else, such as torch.cat([-x, x], dim=1) of one logit",
            path=model.path,
        )
    module, card = structure(model), model.card
    tested = card.exactness == "exact (tested)" and device == "cpu"
    precision = "fp32" if tested and options.precision is None else choose_precision(options.precision, device, card)
    bands = len(card.input.bands)
    graph, obstacles = graph_for(card, module)
    stride, halo, exactness = card.stride, card.halo, card.exactness
    if exactness == "exact (tested)" and (device, precision) != ("cpu", "fp32"):
        exactness, obstacles = "windows", [f"{card.inexact}, and it was tried with fp32 on the CPU only"]
    if exactness == "exact" and graph is not None:  # the layers themselves know best
        stride = math.lcm(stride, graph.stride)
        halo = round_up(max(halo or 0, graph.reach.halo), stride)
    elif isinstance(card.architecture, Factory):
        graph, obstacles = None, [card.inexact or obstacles[0]]
        halo = halo if exactness == "exact (tested)" else None
    network = Network(
        bands=bands,
        classes=len(card.legend),
        stride=stride,
        halo=halo,
        graph=graph.bare() if graph else None,
        obstacles=tuple(obstacles),
        weights=sum(p.numel() * p.element_size() for p in module.parameters()),
        itemsize=4 if precision == "fp32" else 2,
        confidence=options.confidence,
        tested=exactness == "exact (tested)",
    )
    return network, precision


def choose_precision(wanted: Precision | None, device: str, card: ModelCard) -> Precision:
    """The precision of the network; OptionError when the device cannot compute in the one that was asked for."""
    if wanted is not None:
        check_precision(wanted, device)
        return wanted
    measured = card.bf16_disagreement
    return fast_precision(device) if measured is not None and measured <= _MOST_DISAGREEMENT else "fp32"


def choose_threads(wanted: int | None, device: str, processes: int, cores: int | None = None) -> int:
    """CPU threads of the network in each process; 1 where a GPU computes.

    `cores` are those of each process, if it does not share this machine's.
    """
    cpus = cores or available_cpus()
    if wanted is not None and not 1 <= wanted <= _THREADS_PER_CPU * cpus:
        where = "in a job of this cluster" if cores else "on this machine"
        raise OptionError(
            "option-value",
            "{option} {value}: give 1 to {most} {where} of {cpus} CPUs",
            option="--threads",
            value=wanted,
            most=_THREADS_PER_CPU * cpus,
            where=where,
            cpus=cpus,
        )
    if device != "cpu":
        return 1
    return wanted or cores or max(1, cpus // processes)


def memory_budget(device: str, processes: int) -> int:
    """Bytes for each of so many processes, when nobody says how many."""
    return max(int(free_memory(device) * _SHARE_OF_FREE_MEMORY) // processes, _LEAST_MEMORY)
