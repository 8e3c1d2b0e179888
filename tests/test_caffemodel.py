"""Caffe's files: what is written is read, in every form, and nothing but a ModelError comes of damage."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.network.caffemodel import read_caffemodel
from tests.caffe import Version, blob, caffemodel, field, layer, random_net, varint
from tests.errors import refuses

NET = {"conv1": [np.arange(24.0).reshape(2, 3, 2, 2), np.array([-1.5, 2.25])], "score": [np.ones((1, 2, 1, 1))]}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("double", [True, False])
def test_every_form_is_read(tmp_path: Path, version: Version, *, packed: bool, double: bool) -> None:
    path = caffemodel(tmp_path / "a.caffemodel", NET, version, packed=packed, double=double)
    found = read_caffemodel(path)
    assert list(found) == ["conv1", "score"], "layers without blobs are left out"
    for name, blobs in NET.items():
        assert len(found[name]) == len(blobs)
        for one, other in zip(found[name], blobs, strict=True):
            assert one.dtype == (np.float64 if double else np.float32)
            assert one.shape == ((1,) * (4 - other.ndim) + other.shape if version == "v1" else other.shape)
            assert np.array_equal(one.reshape(other.shape), other)


def test_values_in_several_pieces_are_joined(tmp_path: Path) -> None:
    values = np.arange(4, dtype="<f4")
    pieces = (
        field(5, values[:1].tobytes()) + varint(5 << 3 | 5) + values[1:2].tobytes() + field(5, values[2:].tobytes())
    )
    path = tmp_path / "a.caffemodel"
    path.write_bytes(layer("a", [field(7, field(1, 4)) + pieces]))
    assert read_caffemodel(path)["a"][0].tolist() == [0, 1, 2, 3]


def test_a_change_of_an_array_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = caffemodel(tmp_path / "a.caffemodel", NET)
    before = path.read_bytes()
    read_caffemodel(path)["conv1"][0][...] = 7
    assert path.read_bytes() == before


def _of(*blobs: bytes, name: str = "a") -> bytes:
    return layer(name, blobs)


FLOATS = np.zeros(4, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a net at all",
        field(1, b"FCN"),
        layer("relu", []),
        field(100, 3),
        field(100, field(1, b"\xff") + field(7, blob(np.ones(1)))),
        field(100, field(7, blob(np.ones(1)))),
        _of(blob(np.ones(1))) * 2,
        _of(field(7, field(1, 5)) + field(5, FLOATS)),
        _of(field(7, field(1, 3)) + field(5, FLOATS)),
        _of(field(7, field(1, -4)) + field(5, FLOATS)),
        _of(field(7, field(1, -2) * 2) + field(5, FLOATS)),
        _of(field(1, -4) + field(2, -1) + field(3, 1) + field(4, 1) + field(5, FLOATS)),
        _of(field(7, field(1, 2**40) * 4) + field(5, FLOATS)),
        _of(field(7, field(1, 1) * 33) + field(5, FLOATS[:4])),
        _of(field(5, FLOATS[:3]) + field(7, field(1, 1))),
        _of(field(7, field(1, 1)) + field(5, FLOATS[:4]) + field(8, FLOATS[:8])),
        _of(field(7, field(1, 1)) + field(5, 1)),
        _of(field(7, 3)),
        varint(100 << 3 | 2) + varint(2**62),
        varint(100 << 3 | 3),
        b"\x00\x00" + b"\x02\x00",
        b"\xff" * 20,
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_bytes(content)
    with refuses("checkpoint-damaged", path=path):
        read_caffemodel(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "a.caffemodel", tmp_path):
        with refuses("checkpoint-damaged", path=path):
            read_caffemodel(path)


def test_messages_within_messages_are_not_followed(tmp_path: Path) -> None:
    """A reader that recursed into unknown fields would run out of stack."""
    deep = b""
    for _ in range(3000):
        deep = field(9, deep)
    path = tmp_path / "a.caffemodel"
    path.write_bytes(field(100, field(1, b"a") + field(50, deep) + field(7, blob(np.ones(2)))))
    assert read_caffemodel(path)["a"][0].tolist() == [1, 1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    net = random_net("8s", width=64, fc=1, classes=2)
    small: dict[str, list[Any]] = {name: [b[:1, :1] if b.ndim > 1 else b[:1] for b in bs] for name, bs in net.items()}
    return caffemodel(tmp_path_factory.mktemp("whole") / "a.caffemodel", small).read_bytes()


@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_weights_or_a_model_error(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    bad = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    for _ in range(data.draw(st.integers(0, 4), label="changes") if bad else 0):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.caffemodel"
    path.write_bytes(bad)
    with suppress(ModelError):
        layers = read_caffemodel(path)
        assert all(b.nbytes <= len(bad) for blobs in layers.values() for b in blobs)


def test_truncation_within_a_layer_is_found(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_bytes(whole)
    layers = len(read_caffemodel(path))
    last = len(layer("upscore8", [blob(np.zeros((1, 1, 16, 16)))]))
    for cut in (1, 7, last - 1):
        path.write_bytes(whole[:-cut])
        with refuses("checkpoint-damaged", path=path):
            read_caffemodel(path)
    path.write_bytes(whole[:-last])  # between two layers no format of this kind can tell
    assert len(read_caffemodel(path)) == layers - 1
