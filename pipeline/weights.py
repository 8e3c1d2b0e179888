"""Model files: one safetensors file holds the weights and, as metadata, the whole model card. No pickle."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError

from fcn_batch.pipeline.durable import write_whole
from fcn_batch.pipeline.errors import ModelError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.model_card import ModelCard

_CARD_KEY = "fcn_batch.model_card"
_HEADER_LIMIT = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file's place, content hash and card."""

    path: Path
    sha256: str
    card: ModelCard


def save_model(path: Path, network: Fcn, card: ModelCard) -> None:
    """Write `network`, its weights in their own dtype, and `card` to `path` at once or not at all."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={_CARD_KEY: card.model_dump_json()})
    write_whole(path, data)


def read_card(path: Path) -> ModelFile:
    """The card and hash of the model file at `path`; ModelError when it is not one."""
    return _parse(path, _read_bytes(path))


def load_model(path: Path, *, sha256: str | None = None) -> tuple[ModelFile, Fcn]:
    """Card and network (float32, evaluation mode) of the model file at `path`.

    With `sha256`, ModelError when the file is another one by now. The bytes are read once, so what is
    hashed is what is loaded.
    """
    data = _read_bytes(path)
    model = _parse(path, data)
    if sha256 is not None and model.sha256 != sha256:
        raise ModelError(
            f"{path}: the model file changed during the run: sha256 was {sha256[:12]}…, is now "
            f"{model.sha256[:12]}…; put the old file back, or start again with --restart"
        )
    card = model.card
    with torch.device("meta"):  # nothing is allocated until the weights are known to fit the card
        network = Fcn(card.architecture, len(card.input.bands), len(card.legend))
    if (network.stride, network.halo) != (card.stride, card.halo):
        raise ModelError(
            f"{path}: the card says stride {card.stride} and halo {card.halo}, the layers give "
            f"{network.stride} and {network.halo}; the file is damaged or was edited: get it again"
        )
    _fill(path, network, safetensors.torch.load(data))
    return model, network.eval()


def _fill(path: Path, network: Fcn, tensors: dict[str, torch.Tensor]) -> None:
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}  # torch's own memory
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(f"{path}: the weights of {broken[0]} hold NaN or infinity; get the file again")
    dead = [n for n, t in tensors.items() if n.endswith("weight") and not t.any()]
    if dead:
        raise ModelError(f"{path}: all weights of {dead[0]} are zero: the model was never trained")
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights do not fit the card's architecture: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file; `fcn-batch model list` names those that ship") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model file: {error.strerror}") from error


def _parse(path: Path, data: bytes) -> ModelFile:
    """The header of a safetensors file is its length (8 bytes, little endian) and that many bytes of JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _HEADER_LIMIT):
        raise ModelError(f"{path}: not a safetensors file ({len(data)} bytes); give a model made by fcn-batch")
    try:
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_CARD_KEY)
        safetensors.deserialize(data)  # checks offsets against the file's length
    except (ValueError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}; get the file again") from error
    if text is None:
        raise ModelError(f"{path}: holds weights but no fcn-batch model card; make it with `fcn-batch train`")
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: bad model card: {where}: {first['msg']} (got {first['input']!r})") from error
    return ModelFile(path, hashlib.sha256(data).hexdigest(), card)
