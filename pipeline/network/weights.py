"""Model files: one safetensors file holds the weights and, as metadata, the whole model card. No pickle.

A path that ends in .toml is a model that other people's code builds: see factory.py.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.limits import MAX_MODEL, read_bounded, regular_size
from fcn_batch.pipeline.core.model_card import Factory, ModelCard, first_problem
from fcn_batch.pipeline.network.device import free_memory
from fcn_batch.pipeline.network.factory import as_float32, build, card_of, damaged_file, read_factory
from fcn_batch.pipeline.network.fcn import FcnNetwork, build_network

_CARD_KEY = "fcn_batch.model_card"
_HEADER_LIMIT = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file's place, content hash and card."""

    path: Path
    sha256: str
    card: ModelCard


def save_model(path: Path, network: FcnNetwork, card: ModelCard, *, dtype: torch.dtype | None = None) -> None:
    """Write `network` and `card` to `path` at once or not at all.

    Weights are written as `dtype`, or in their own if it is None; counters stay whole numbers. They are read as
    float32 again whatever they were written as. ModelError when a weight is too large for `dtype`.
    """
    tensors = {name: _packed(path, name, tensor, dtype) for name, tensor in network.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={_CARD_KEY: card.model_dump_json()})
    write_whole(path, data)


def _packed(path: Path, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    packed = tensor.to(dtype)
    if not torch.equal(packed.isfinite(), tensor.isfinite()):
        raise ModelError(
            "weights-too-large",
            "{path}: {name} holds {value:g}, too large for {dtype}; save it as float32",
            path=path,
            name=name,
            value=float(tensor.abs().max()),
            dtype=dtype,
        )
    return packed


def read_card(path: Path) -> ModelFile:
    """The card and hash of the model file at `path`, .safetensors or .toml; ModelError when it is not one.

    A .toml whose grid is not stored yet is built and probed, which takes seconds.
    """
    if path.suffix == ".toml":
        model = read_factory(path)
        return ModelFile(path, model.sha256, card_of(model))
    data = _read_bytes(path)
    file = _parse(path, data)
    _tensors(path, data)
    return file


def structure(file: ModelFile) -> nn.Module:
    """The network of a model that was read, to look at its layers: of our own kind, without weights."""
    if isinstance(file.card.architecture, Factory):
        return load_model(file.path, sha256=file.sha256)[1]
    return _bare(file).eval()


def load_model(path: Path, *, sha256: str | None = None) -> tuple[ModelFile, nn.Module]:
    """Card and network (float32, evaluation mode) of the model file at `path`, .safetensors or .toml.

    With `sha256`, ModelError when the file is another one by now. The bytes are read once, so what is
    hashed is what is loaded.
    """
    if path.suffix == ".toml":
        model = read_factory(path)
        _check_hash(path, model.sha256, sha256)
        network = build(model)
        return ModelFile(path, model.sha256, card_of(model, network)), network
    data = _read_bytes(path)
    file = _parse(path, data)
    _check_hash(path, file.sha256, sha256)
    return file, _own(file, data)


def _check_hash(path: Path, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise ModelError(
            "model-changed",
            "{path}: the model file changed during the run: sha256 was {before:.12}…, is now {now:.12}…; put the old "
            "file back, or start again with --restart",
            path=path,
            before=wanted,
            now=found,
        )


def _own(file: ModelFile, data: bytes) -> FcnNetwork:
    network = _bare(file)
    _fill(file.path, network, _tensors(file.path, data))
    return network.eval()


def _bare(file: ModelFile) -> FcnNetwork:
    """The network that the card describes, without weights; ModelError when its grid is not the card's."""
    card, path = file.card, file.path
    if isinstance(card.architecture, Factory):
        raise ModelError(
            "model-factory",
            "{path}: its card names the factory {target}; give that one's TOML file",
            path=path,
            target=card.architecture.target,
        )
    with torch.device("meta"):  # nothing is allocated until the weights are known to fit the card
        network = build_network(card.architecture, len(card.input.bands), len(card.legend))
    says, found = ((one.stride, one.halo, one.phase) for one in (card, network))
    if found != says:
        raise ModelError(
            "grid-mismatch",
            "{path}: the card says stride, halo and phase are {says}, the layers give {found}; the file is damaged or "
            "was edited: get it again",
            path=path,
            says=says,
            found=found,
        )
    return network


def _fill(path: Path, network: FcnNetwork, tensors: dict[str, torch.Tensor]) -> None:
    tensors = as_float32(path, tensors)
    dead = [n for n, t in tensors.items() if n.endswith("weight") and not t.any()]
    if dead:
        raise ModelError(
            "weights-untrained", "{path}: all of {layer} is zero: the model was never trained", path=path, layer=dead[0]
        )
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelError(
            "weights-mismatch",
            "{path}: the weights do not fit the card's architecture: {why}",
            path=path,
            why=_line(error),
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _read_bytes(path: Path) -> bytes:
    try:
        size, free = regular_size(path), free_memory("cpu")
        if size > free:
            raise ModelError(
                "model-too-large",
                "{path}: {size} bytes of weights do not fit the {free} bytes of free memory",
                path=path,
                size=size,
                free=free,
            )
        return read_bounded(path, MAX_MODEL)
    except FileNotFoundError:
        raise ModelError(
            "model-missing", "{path}: no such model file; `fcn-batch model list` names those that ship", path=path
        ) from None
    except OSError as error:
        raise ModelError(
            "model-unreadable", "{path}: cannot read the model file: {why}", path=path, why=error.strerror
        ) from error


def _parse(path: Path, data: bytes) -> ModelFile:
    """The header of a safetensors file is its length (8 bytes, little endian) and that many bytes of JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _HEADER_LIMIT):
        raise ModelError(
            "model-unknown",
            "{path}: not a safetensors file ({size} bytes); give a model made by fcn-batch",
            path=path,
            size=len(data),
        )
    try:
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_CARD_KEY)
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged_file(path, error) from error
    if text is None:
        _tensors(path, data)  # a broken file says that first
        raise ModelError(
            "card-missing",
            "{path}: holds weights but no fcn-batch model card; make it with `fcn-batch train`",
            path=path,
        )
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise ModelError("card-invalid", "{path}: {reason}", path=path, reason=first_problem(error)) from error
    return ModelFile(path, hashlib.sha256(data).hexdigest(), card)


def _tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    """All tensors of the file; ModelError when their places do not fit its length."""
    try:
        return safetensors.torch.load(data)
    except (ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise damaged_file(path, error) from error
