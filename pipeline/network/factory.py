"""Models that other people's code builds: a TOML file names a factory, its arguments, the weights and the classes.

::

    name = "roofs"
    version = "1"
    summary = "Roofs in aerial images"
    factory = "my_package.nets:make_unet"     # called with [arguments]; returns a torch.nn.Module
    weights = "roofs.safetensors"             # its state dict, beside this file; never a pickle
    none = ["encoder_weights"]                # arguments that are None, which TOML cannot say

    [arguments]
    classes = 2

    [input]
    gsd_m = 0.2
    bands = [{ name = "red", mean = 0.4, std = 0.2 }, …]

    [[classes]]
    id = 0
    name = "other"
    colour = "#808080"

How far the network looks, and how exact that makes its maps, is found once by `prove` and kept beside the TOML in
NAME.grid.json.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import nn

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.imports import Source, locate
from fcn_batch.pipeline.core.limits import MAX_MODEL, MAX_TEXT, parsed_toml, read_bounded
from fcn_batch.pipeline.core.model_card import (
    NAME,
    TARGET,
    Factory,
    InputSpec,
    ModelCard,
    Scores,
    TrainingData,
    first_problem,
)
from fcn_batch.pipeline.network.probe import Grid
from fcn_batch.pipeline.network.proof import Proof, prove
from fcn_batch.pipeline.network.trial import try_out

_PROBE = 2
"""Version of the probe: raised when it finds other grids, so that stored ones are not believed."""


class Description(BaseModel):
    """The TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=NAME)
    version: str
    summary: str
    factory: str = Field(pattern=TARGET)
    weights: str = Field(min_length=1)
    """File of the state dict, relative to the TOML's folder and in it: a TOML from elsewhere must not read others."""
    arguments: dict[str, JsonValue] = {}
    none: tuple[str, ...] = ()
    """Arguments that are None."""
    input: InputSpec
    classes: tuple[ClassInfo, ...] = Field(min_length=1)
    """In the order of the network's score channels."""
    training: tuple[TrainingData, ...] = ()
    scores: Scores | None = None
    bf16_disagreement: float | None = Field(default=None, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class FactoryModel:
    """All that makes such a model, read once: what is hashed is what is loaded."""

    path: Path
    """The TOML file."""
    description: Description
    factory: Factory
    legend: Legend
    source: Source
    weights: bytes = field(repr=False)
    sha256: str
    """Of the TOML, the weights and the file of the factory's module."""

    @property
    def grid_path(self) -> Path:
        """Where what the probe found is kept."""
        return self.path.with_suffix(".grid.json")


class ScoresOf(nn.Module):
    """A network whose forward returns scores, or, as torchvision's do, a mapping that has them under "out"."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (n, classes, rows, cols); ModelError when a mapping has none."""
        scores = self.network(x)
        if isinstance(scores, Mapping):
            if "out" not in scores:
                raise ModelError(
                    "network-output",
                    'the network returns a mapping of {found}; let it have the scores as "out"',
                    found=sorted(scores),
                )
            scores = scores["out"]
        out: torch.Tensor = scores
        return out


def toml_of(target: str) -> Path:
    """The TOML file beside the module of ``package.module:factory``; ModelError when it is missing or names another.

    A module that Python does not find is also looked for in the current directory.
    """
    source = locate(target.partition(":")[0])
    path = source.path.absolute().with_suffix(".toml")
    if not path.is_file():
        raise ModelError(
            "description-missing",
            "{target}: no {path} describes the model; write it, or give the path of a TOML that does",
            target=target,
            path=path,
        )
    named = _description(path, _bytes(path, "model description")).factory
    if named != target:
        raise ModelError(
            "description-other",
            "{target}: {path} is of the factory {named}; give that one, or another TOML file by its path",
            target=target,
            path=path,
            named=named,
        )
    return path


def read_factory(path: Path) -> FactoryModel:
    """The TOML at `path` and all it names; nothing of the user's code runs. ModelError when something is missing.

    A module that Python does not find is also looked for in the TOML's folder, in the folder above its
    package there, and in the current directory.
    """
    toml = _bytes(path, "model description")
    description = _description(path, toml)
    try:
        legend = Legend(classes=description.classes)
    except ValidationError as error:
        raise ModelError(
            "description-invalid", "{path}: {reason}", path=path, reason=f"classes: {error.errors()[0]['msg']}"
        ) from error
    factory = Factory(
        target=description.factory, arguments={**description.arguments, **dict.fromkeys(description.none)}
    )
    weights = _bytes(_weights_file(path, description), f"weights that {path.name} names", MAX_MODEL)
    try:
        source = locate(factory.module, path.parent.absolute())
    except ModelError as error:
        raise ModelError("factory-missing", "{path}: factory: {why}", path=path, why=error) from error
    digest = hashlib.sha256()
    for part in (toml, weights, source.data):
        digest.update(len(part).to_bytes(8, "little") + part)
    return FactoryModel(path, description, factory, legend, source, weights, digest.hexdigest())


def build(model: FactoryModel) -> ScoresOf:
    """The network with its weights, float32, in evaluation mode; tried on noise.

    ModelError when the factory fails, the weights do not fit, or bands or classes are not those of the TOML.
    """
    made = _made(model)
    place = _weights_file(model.path, model.description)
    try:
        tensors = safetensors.torch.load(model.weights)
    except (ValueError, safetensors.SafetensorError) as error:
        raise damaged_file(place, error) from error
    try:
        made.float().load_state_dict(as_float32(place, tensors))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:400]
        raise ModelError(
            "weights-mismatch",
            "{path}: the weights do not fit what {target} builds: {why}",
            path=place,
            target=model.factory.target,
            why=why,
        ) from error
    network = ScoresOf(made).eval().requires_grad_(requires_grad=False)
    _check_sizes(model, network)
    return network


def card_of(model: FactoryModel, network: nn.Module | None = None) -> ModelCard:
    """The card of `model`; `network`, if it is at hand, spares building it where no grid is stored."""
    proof = _stored_proof(model)
    if proof is None:
        try:
            proof = prove(network or build(model), len(model.description.input.bands))
        except ModelError as error:
            raise _named(model, error) from error
        found = {"sha256": model.sha256, "probe": _PROBE, "torch": torch.__version__, **asdict(proof)}
        with suppress(OSError):  # a folder that cannot be written to: found again the next time
            write_whole(model.grid_path, json.dumps(found, indent=1) + "\n")
    about = model.description
    return ModelCard(
        name=about.name,
        version=about.version,
        summary=about.summary,
        architecture=model.factory,
        stride=proof.grid.stride,
        halo=proof.grid.halo,
        phase=proof.grid.phase,
        exactness=proof.exactness,
        inexact=proof.why,
        probabilities=proof.probabilities,
        input=about.input,
        legend=model.legend,
        training=about.training,
        scores=about.scores,
        bf16_disagreement=about.bf16_disagreement,
    )


def as_float32(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` in torch's own memory, floats as float32; ModelError when one holds NaN or infinity."""
    copies = {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }
    # a sum is finite if all are, and is not where one is not (or, hardly, where the sum is too large)
    doubtful = [name for name, tensor in copies.items() if not torch.isfinite(tensor.sum())]
    broken = [name for name in doubtful if not torch.isfinite(copies[name]).all()]
    if broken:
        raise ModelError(
            "weights-invalid", "{path}: {layer} holds NaN or infinity; get the file again", path=path, layer=broken[0]
        )
    return copies


def damaged_file(path: Path, why: Exception) -> ModelError:
    """Return the error for a safetensors file that is cut short or none at all."""
    return ModelError(
        "model-damaged", "{path}: not a whole safetensors file: {why}; get the file again", path=path, why=why
    )


def _made(model: FactoryModel) -> nn.Module:
    """What the factory returns; its random weights, soon replaced, draw from no one else's random numbers."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about themselves
        try:
            made = model.source.call(model.factory.name, dict(model.factory.arguments))
        except ModelError as error:
            raise _named(model, error) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            "factory-output",
            "{path}: {target} returned {found}; it must return a torch.nn.Module",
            path=model.path,
            target=model.factory.target,
            found=type(made).__name__,
        )
    return made


def _check_sizes(model: FactoryModel, network: nn.Module) -> None:
    bands, classes = len(model.description.input.bands), len(model.legend)
    try:
        found = try_out(network, bands).classes
    except ModelError as error:
        first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and first.in_channels != bands:
            raise ModelError(
                "network-bands",
                "{path}: [input] names {bands} bands, the network's first convolution takes {found}; correct the "
                "bands or [arguments]",
                path=model.path,
                bands=bands,
                found=first.in_channels,
            ) from error
        raise _named(model, error) from error
    if found != classes:
        raise ModelError(
            "classes-mismatch",
            "{path}: names {names} classes, the network scores {classes}; correct [[classes]] or [arguments]",
            path=model.path,
            names=classes,
            classes=found,
        )


def _named(model: FactoryModel, error: ModelError) -> ModelError:
    return ModelError("network-unusable", "{path}: {problem}", path=model.path, problem=error)


def _stored_proof(model: FactoryModel) -> Proof | None:
    """Return what was found for the very same model by the same torch; None when there is nothing to believe."""
    try:
        found = json.loads(read_bounded(model.grid_path, MAX_TEXT))
        if (found.pop("sha256"), found.pop("probe"), found.pop("torch")) == (model.sha256, _PROBE, torch.__version__):
            return Proof(**{**found, "grid": Grid(**found["grid"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _description(path: Path, toml: bytes) -> Description:
    try:
        return Description.model_validate(parsed_toml(toml))
    except ValidationError as error:
        raise ModelError("description-invalid", "{path}: {reason}", path=path, reason=first_problem(error)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            "description-damaged",
            "{path}: not a TOML file, or one that is nested too deeply: {why}",
            path=path,
            why=error,
        ) from error


def _weights_file(path: Path, description: Description) -> Path:
    """Where the weights are; ModelError when that is not in the folder of the TOML, or in one in that."""
    file = path.parent / description.weights
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ModelError(
            "weights-elsewhere",
            "{path}: weights {weights!r:.300} lie in another folder; put them beside the TOML",
            path=path,
            weights=description.weights,
        )
    return file


def _bytes(path: Path, what: str, limit: int = MAX_TEXT) -> bytes:
    try:
        return read_bounded(path, limit)
    except FileNotFoundError:
        raise ModelError(
            "model-missing", "{path}: no such file ({what}); correct the name or put it there", path=path, what=what
        ) from None
    except OSError as error:
        raise ModelError(
            "model-unreadable", "{path}: cannot read the {what}: {why}", path=path, what=what, why=error.strerror
        ) from error
