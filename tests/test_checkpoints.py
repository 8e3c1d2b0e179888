"""Other people's checkpoints: every form is read, none is run, and damage is told in one line."""

import argparse
import io
import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.network.checkpoints import read_tensors
from tests.caffe import caffemodel
from tests.errors import refuses

STATE = OrderedDict({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float64)})
TRAINING = {
    "epoch": 3,
    "iteration": 4000,
    "arch": "FCN8s",
    "optim_state_dict": {"state": {}, "param_groups": [{"lr": 1e-10, "params": [0]}]},
    "best_mean_iu": np.float64(0.65),
    "loss": np.float32(0.25),
    "count": np.int64(7),
    "args": argparse.Namespace(lr=1e-10),
}


def _same(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(STATE)
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {**TRAINING, "model_state_dict": state},
        lambda state: {**TRAINING, "model": {"state_dict": state}},
        lambda state: {"model": {f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": nn.Parameter(tensor) for key, tensor in state.items()},
    ],
    ids=["bare", "lightning", "pytorch-fcn", "twice", "parallel", "compiled"],
)
def test_pytorch_files(tmp_path: Path, wrap: Any, *, zipped: bool) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)
    found = read_tensors(path)
    assert (found.kind, found.path) == ("torch", path)
    _same(found.tensors)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_a_prefix_that_not_all_names_have_is_part_of_them(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth").tensors) == ["module.a", "b"]


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"  # the content decides
    safetensors.torch.save_file(dict(sorted(STATE.items(), reverse=True)), path)
    found = read_tensors(path)
    assert found.kind == "safetensors"
    _same({name: found.tensors[name] for name in STATE})
    path.write_bytes(path.read_bytes()[:-1])
    with refuses("checkpoint-damaged", path=path):
        read_tensors(path)


def test_caffemodels(tmp_path: Path) -> None:
    blobs = {"a": [STATE["a.weight"].numpy(), np.ones(2), np.zeros(1)]}
    found = read_tensors(caffemodel(tmp_path / "a.caffemodel", blobs, double=True))
    assert found.kind == "caffe"
    assert list(found.tensors) == ["a.weight", "a.bias", "a.2"]
    assert torch.equal(found.tensors["a.weight"], STATE["a.weight"].double())


class _Burglar:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 5"])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "broken-in", tmp_path / "model.pth"
    content = {"model_state_dict": dict(STATE), "extra": _Burglar(target)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(_Burglar(target), protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError) as caught:
        read_tensors(path)
    assert caught.value.code in ("checkpoint-code", "checkpoint-damaged")
    assert not target.exists()
    with path.open("rb") as file:  # the trap does work
        pickle.load(file) if form.startswith("pickle") else torch.load(file, weights_only=False)  # noqa: S301
    assert target.exists()


def test_a_whole_module_is_named(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "a.pth")
    with refuses("checkpoint-code", path=tmp_path / "a.pth", name="torch.nn.modules.conv.Conv2d"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({}, "checkpoint-empty"),
        ([torch.ones(1)], "checkpoint-empty"),
        (torch.ones(1), "checkpoint-empty"),
        ({1: torch.ones(1)}, "checkpoint-empty"),
        ({"a": torch.ones(1).expand(10**12)}, "checkpoint-damaged"),
        ({"a": torch.ones(2, 2).to_sparse()}, "tensor-unsupported"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor-unsupported"),
        ({"a": torch.ones(2, device="meta")}, "tensor-unsupported"),
    ],
    ids=["empty", "list", "tensor", "numbers", "expanded", "sparse", "complex", "meta"],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, code: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with refuses(code, path=tmp_path / "a.pth"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "checkpoint-damaged"),
        (b"x", "checkpoint-unknown"),
        (b"These are not the weights.", "checkpoint-unknown"),
        (b"version https://git-lfs.github.com/spec/v1\n", "checkpoint-unknown"),
        (b"<!DOCTYPE html>", "checkpoint-unknown"),
        (b"\x89HDF\r\n\x1a\n", "checkpoint-damaged"),
        (b"\x1f\x8b\x08", "checkpoint-unknown"),
        (b"PK\x03\x04", "checkpoint-damaged"),
        (b"\x80", "checkpoint-damaged"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with refuses(code, path=tmp_path / "a.pth"):
        read_tensors(tmp_path / "a.pth")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "a.pth", tmp_path):
        with refuses("checkpoint-unreadable", path=path):
            read_tensors(path)


def _saved(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({**TRAINING, "model_state_dict": STATE}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


WHOLE = {zipped: _saved(zipped=zipped) for zipped in (True, False)}


@given(data=st.data(), zipped=st.booleans())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_tensors_or_a_model_error(tmp_path: Path, data: st.DataObject, *, zipped: bool) -> None:
    bad = bytearray(WHOLE[zipped])
    if data.draw(st.booleans(), label="cut"):
        del bad[data.draw(st.integers(0, len(bad) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3), label="changes") if bad else 0):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pth"
    path.write_bytes(bad)
    with suppress(ModelError):
        found = read_tensors(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncation_is_found(tmp_path: Path, *, zipped: bool) -> None:
    whole, path = WHOLE[zipped], tmp_path / "a.pth"
    for length in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with refuses("checkpoint-damaged", path=path):
            read_tensors(path)
