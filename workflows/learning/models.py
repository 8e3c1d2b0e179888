"""Find models: those that ship with the package by name, any other by path or by the factory that builds it."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from fcn_batch.pipeline.core.errors import ModelError, OutputError
from fcn_batch.pipeline.core.model_card import TARGET, Architecture, Exactness, Factory, ModelCard, TorchvisionFcn
from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.factory import toml_of
from fcn_batch.pipeline.network.probe import Grid
from fcn_batch.pipeline.network.proof import prove
from fcn_batch.pipeline.network.trial import Agreement, compare_stream, compare_window
from fcn_batch.pipeline.network.weights import ModelFile, load_model, read_card
from fcn_batch.workflows.inputs.resolution import metres

_LARGEST_DIFFERENCE = 1e-3
"""Share of the largest score: far above what float32 rounds, far below what a halo that is too small does."""


def embedded() -> Iterator[ModelFile]:
    """The models that ship with the package, by name."""
    for path in sorted(_folder().glob("*.safetensors")):
        yield read_card(path)


def find_model(name_or_path: str) -> ModelFile:
    """The embedded model of that name, the model file (.safetensors, .toml) at that path, or that of a factory.

    ``package.module:factory`` stands for the TOML file beside the module. ModelError when there is none.
    """
    named = _folder() / f"{name_or_path}.safetensors"
    if "/" not in name_or_path and named.is_file():
        return read_card(named)
    path = Path(name_or_path)
    if re.match(TARGET, name_or_path) and not path.exists():
        path = toml_of(name_or_path)
    if path.suffix not in (".safetensors", ".toml") and not path.exists():
        known = ", ".join(p.stem for p in sorted(_folder().glob("*.safetensors")))
        raise ModelError(
            "model-unnamed",
            "{name}: no embedded model has this name ({known}), and no file either",
            name=name_or_path,
            known=known,
        )
    return read_card(path.absolute())


def list_json(models: Iterable[ModelFile]) -> str:
    """What `fcn-batch model list --json` prints: an object for each model."""
    found = [
        {
            "name": file.card.name,
            "version": file.card.version,
            "summary": file.card.summary,
            "file": str(file.path),
            "sha256": file.sha256,
        }
        for file in models
    ]
    return json.dumps(found, indent=2)


def model_json(file: ModelFile) -> str:
    """What `fcn-batch model info --json` prints: the card, the file and its SHA-256."""
    return json.dumps({"file": str(file.path), "sha256": file.sha256, **file.card.model_dump(mode="json")}, indent=2)


def check_model_output(path: Path, *, overwrite: bool) -> None:
    """OutputError, before any work, when a model file cannot be written to `path`."""
    if path.suffix != ".safetensors":
        raise OutputError("model-suffix", "{path}: a model file's name ends in .safetensors; call it so", path=path)
    if path.exists() and not overwrite:
        raise OutputError("output-exists", "{path}: exists already; give --overwrite to replace it", path=path)
    if not (folder := path.absolute().parent).is_dir():
        raise OutputError(
            "folder-missing", "{path}: there is no folder {folder}; create it first", path=path, folder=folder
        )


def _folder() -> Path:
    return Path(str(files("fcn_batch.configs"))) / "models"


def describe_model(file: ModelFile) -> list[tuple[str, str]]:
    """What `fcn-batch model info` prints: label and value, one pair a line."""
    card, spec = file.card, file.card.input
    bands = ", ".join(band.name for band in spec.bands)
    pairs = [
        ("model", _title(card)),
        ("file", str(file.path)),
        ("sha256", file.sha256),
        *_describe_network(file),
        ("bands", f"{bands} ({spec.dtype}, white at {spec.full_scale:g})"),
        ("resolution", f"{metres(spec.gsd_m)} per pixel"),
        *(("class", f"{c.id:3} {c.colour} {c.name}") for c in card.legend.classes),
        *(("data", f"{d.name}; {d.source}; licence: {d.licence}") for d in card.training),
    ]
    if card.bf16_disagreement is not None:
        pairs.append(("bfloat16", f"gives another class than float32 to {card.bf16_disagreement:.3%} of pixels"))
    if card.scores is not None:
        scores = card.scores
        numbers = f"pixel accuracy {scores.pixel_accuracy:.3f}, mean IU {scores.mean_iu:.3f}"
        pairs += [
            ("scores", f"{numbers} ({scores.split})"),
            *(("IU", f"{iu:.3f} {name}") for name, iu in scores.class_iu.items()),
            ("baseline", scores.baseline),
        ]
    return pairs


def _title(card: ModelCard) -> str:
    return f"{card.name} {card.version}: {card.summary}"


def _describe_network(file: ModelFile) -> list[tuple[str, str]]:
    card, net = file.card, file.card.architecture
    if isinstance(net, Factory):
        arguments = ", ".join(f"{key}={value!r}" for key, value in net.arguments.items())
        reach = "looks at the whole image" if card.halo is None else f"halo {card.halo} px, by probe"
        return [("network", f"{net.target}({arguments})"), ("stride", f"{card.stride} px, {reach}")]
    layers = getattr(load_model(file.path)[1], "reach", None)
    field = f", receptive field {layers.field} px" if isinstance(layers, Reach) else ""
    phase = f", cells begin at {card.phase} px" if card.phase else ""
    return [("network", _network_in_words(net)), ("stride", f"{card.stride} px, halo {card.halo} px{field}{phase}")]


def _network_in_words(net: Architecture | TorchvisionFcn) -> str:
    if isinstance(net, TorchvisionFcn):
        return f"{net.name}, as torchvision builds it"
    parts = [f"FCN-{net.stride}s", f"{net.trunk} x {net.width:g}"]
    if net.input_upsampling != 1:
        parts.append(f"input enlarged {net.input_upsampling} times")
    if not net.fc_channels:
        parts.append("scored without fc6 and fc7")
    if net.skip_scales != (1, 1):
        parts.append("pool4 x {:g} and pool3 x {:g}".format(*net.skip_scales))
    if net.shift:
        parts.append(f"shifted by {net.shift} px")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Check:
    """What a network does, found by trying it, beside what its card says."""

    model: str
    """Name, version and summary."""
    file: str
    says: Grid
    """By the card."""
    found: Grid
    """By the probe."""
    exactness: Exactness
    """The best word for a map of it."""
    agreement: Agreement | None
    """A window with its halo against the whole image; None when no halo is enough."""
    streamed: Agreement | None
    """Rows in a stream against the whole image; None when it cannot be streamed."""
    obstacles: list[str]
    """Why it cannot be streamed."""

    def to_json(self) -> str:
        """All fields, for programs."""
        return json.dumps(asdict(self), indent=2)


def check_model(name_or_path: str) -> Check:
    """Probe a model and compare a window with the whole image; ModelError when its card says something else."""
    file, network = load_model(find_model(name_or_path).path)
    card, bands = file.card, len(file.card.input.bands)
    says, proof = Grid(card.stride, card.phase, card.halo), prove(network, bands)
    found = proof.grid
    if (found, proof.exactness) != (says, card.exactness):
        kept = file.path.with_suffix(".grid.json").name
        remedy = f"remove {kept}" if isinstance(card.architecture, Factory) else "get the file again"
        raise ModelError(
            "grid-mismatch",
            "{path}: the card says {says}; the network has {found}: {remedy}",
            path=file.path,
            says=f"{card.exactness}, {_in_words(says)}",
            found=f"{proof.exactness}, {_in_words(found)}",
            remedy=remedy,
        )
    agreement = None if found.halo is None else compare_window(network, bands, found.stride, found.halo)
    if agreement is not None and agreement.difference > _LARGEST_DIFFERENCE:
        raise ModelError(
            "network-random",
            "{path}: scores through a window with its halo differ from the whole image's by {difference:.2g} of the "
            "largest; the network does not depend on pixels alone: remove what is random in it, or what counts calls",
            path=file.path,
            difference=agreement.difference,
        )
    graph, obstacles = graph_of(network, bands) if proof.exactness != "windows" else (None, [proof.why])
    streamed = None if graph is None else compare_stream(network, graph, bands)
    return Check(
        _title(card),
        str(file.path),
        says,
        found,
        exactness=proof.exactness,
        agreement=agreement,
        streamed=streamed,
        obstacles=obstacles,
    )


def describe_check(check: Check) -> list[tuple[str, str]]:
    """What `fcn-batch model check` prints: label and value, one pair a line."""
    halo, agreement = check.found.halo, check.agreement
    pairs = [
        ("model", check.model),
        ("file", check.file),
        ("stride", f"{check.found.stride} px, as the card says"),
        ("phase", f"{check.found.phase} px, as the card says"),
        ("halo", "none is enough, as the card says" if halo is None else f"{halo} px, as the card says"),
    ]
    if agreement is None:
        why = "the map is the blend of a fixed grid of windows"
        return [*pairs, ("result", f"windows: {why}"), ("because", "; ".join(check.obstacles))]
    streaming = f"no, in tiles: {'; '.join(check.obstacles)}"
    if check.streamed is not None:
        streaming = f"yes: {_compared(check.streamed)}"
    return [
        *pairs,
        ("result", f"{check.exactness}: with {halo} px around it, a core gives the scores of the whole image"),
        ("verified", _compared(agreement)),
        ("streaming", streaming),
    ]


def _compared(agreement: Agreement) -> str:
    differ = f"differ by at most {agreement.difference:.1e} of the largest, {agreement.classes} classes differ"
    return f"{agreement.pixels} pixels of an image of noise: scores {differ}"


def _in_words(grid: Grid) -> str:
    return f"stride {grid.stride}, phase {grid.phase}, " + ("no halo" if grid.halo is None else f"halo {grid.halo}")
