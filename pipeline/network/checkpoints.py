"""Tensors out of other people's checkpoints: safetensors, PyTorch's files (never executed), .caffemodel, HDF5."""

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy._core import multiarray

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.limits import MAX_MODEL, regular_size
from fcn_batch.pipeline.network.caffemodel import read_caffemodel

Kind = Literal["safetensors", "torch", "caffe", "hdf5"]

_ZIP, _PICKLE, _HDF5 = b"PK\x03\x04", b"\x80", b"\x89HDF"
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: fetch them with `git lfs pull`",
    b"<": "a web page, not the weights: download the file itself",
    b"\x1f\x8b": "compressed: unpack it first",
}
_NO_CHECKPOINT = "no checkpoint: give a .safetensors, .pth or .caffemodel file"
_LONGEST_HEADER = 2**32
_WRAPPERS = ("model_state_dict", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_HARMLESS: list[Any] = [
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    argparse.Namespace,
]
"""Beside what torch allows itself: the numbers and settings that training scripts keep beside the weights."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a file, and what kind of file it is."""

    path: Path
    kind: Kind
    tensors: dict[str, torch.Tensor]
    """By name; from a .caffemodel ``layer.weight`` and ``layer.bias``, further blobs ``layer.2`` and so on."""


def read_tensors(path: Path) -> Checkpoint:
    """The tensors of the checkpoint at `path`, in their own dtype, on the CPU; the content decides which kind it is.

    State dicts are found within training checkpoints, and what DataParallel adds to names is taken away. Pickles are
    read by torch's restricted reader only, which runs no code. ModelError when the file is missing, cut short, of
    another kind, or wants to run code.
    """
    head = _head(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_HEADER:  # first: a length may look as any
        return Checkpoint(path, "safetensors", _named(path, _load_safetensors(path)))
    if head[:1] == _PICKLE or head[:4] == _ZIP:
        return Checkpoint(path, "torch", _named(path, _unwrapped(_load_torch(path, zipped=head[:4] == _ZIP))))
    if head[:4] == _HDF5:
        return Checkpoint(path, "hdf5", _load_hdf5(path))
    if path.suffix == ".caffemodel":
        return Checkpoint(path, "caffe", _load_caffe(path))
    what = next((what for start, what in _OTHERS.items() if head.startswith(start)), _NO_CHECKPOINT)
    raise ModelError("checkpoint-unknown", "{path}: is {what}", path=path, what=what)


def _head(path: Path) -> bytes:
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ModelError(
            "checkpoint-unreadable",
            "{path}: cannot read the file: {reason}; check the name",
            path=path,
            reason=error.strerror,
        ) from error
    if size > MAX_MODEL:
        raise ModelError(
            "checkpoint-too-large",
            "{path}: {size} bytes, more than the limit of {limit}; give the weights alone",
            path=path,
            size=size,
            limit=MAX_MODEL,
        )
    if not head:
        raise _damaged(path, "checkpoint", "it is empty")
    return head


def _damaged(path: Path, kind: str, reason: object) -> ModelError:
    return ModelError(
        "checkpoint-damaged",
        "{path}: not a whole {kind}: {reason}; get the file again",
        path=path,
        kind=kind,
        reason=reason,
    )


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (ValueError, RuntimeError, KeyError, OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, "safetensors file", error) from error


def _load_torch(path: Path, *, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of old formats: what they hold is what counts
            # mapped, weights need no memory of their own; the old format cannot be
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can fail in any way at all
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                "checkpoint-code",
                "{path}: holds Python objects ({name}), which could run code and are never loaded; save the network's "
                "state_dict() instead",
                path=path,
                name=found[1],
            ) from None
        reason = str(error).strip().split("\n")[0][:100] or type(error).__name__
        if reason.startswith("Weights only"):  # what follows speaks to programmers
            reason = "its pickle holds something else than tensors"
        raise _damaged(path, "PyTorch checkpoint", reason) from error


def _load_caffe(path: Path) -> dict[str, torch.Tensor]:
    parts = ("weight", "bias")
    return {
        f"{layer}.{parts[index] if index < len(parts) else index}": torch.from_numpy(blob)
        for layer, blobs in read_caffemodel(path).items()
        for index, blob in enumerate(blobs)
    }


def _load_hdf5(path: Path) -> dict[str, torch.Tensor]:
    """All arrays of numbers, by their path in the file, as Keras writes them."""
    try:
        import h5py
    except ImportError:
        raise ModelError(
            "package-missing",
            "{path}: is an HDF5 file, which the package {package} reads: pip install 'fcn-batch[models]'",
            path=path,
            package="h5py",
        ) from None
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            found[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(keep)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _damaged(path, "HDF5 file", error) from error
    if not found:
        raise ModelError("checkpoint-empty", "{path}: holds no arrays of numbers; give a file of weights", path=path)
    return found


def _unwrapped(found: Any) -> Any:
    """The state dict within a training checkpoint."""
    while isinstance(found, Mapping):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    return found


def _named(path: Path, found: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by their bare names, each checked to hold as many values as it claims."""
    if not isinstance(found, Mapping):
        found = {}
    tensors = {name: t.detach() for name, t in found.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if not tensors:
        raise ModelError("checkpoint-empty", "{path}: holds no tensors by name; save a state_dict()", path=path)
    for name, tensor in tensors.items():
        _check_dense(path, name, tensor)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_dense(path: Path, name: str, tensor: torch.Tensor) -> None:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.is_complex():
        raise ModelError(
            "tensor-unsupported",
            "{path}: {name} is sparse, quantised, complex or without values; save plain float tensors",
            path=path,
            name=name,
        )
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _damaged(path, "checkpoint", f"{name} claims {tensor.numel()} values, more than the file holds")
