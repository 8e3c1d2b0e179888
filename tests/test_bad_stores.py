"""Zarr stores that are broken, made to do harm, or no image: refused with one line and a code."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.store.zarrsource import ZarrSource
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.rasters import noise
from tests.runs import fcn_batch
from tests.zarrs import bare_array, ome_by_hand

Change = Callable[[dict[str, Any]], object]


def edit(path: Path, change: Change) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def array(path: Path, change: Change | None = None, dtype: str = "uint8", **options: Any) -> None:
    bare_array(noise(1, 64, 96, dtype)[0], path, 3, **options)
    if change is not None:
        edit(path / "zarr.json", change)


def changed(**values: Any) -> Callable[[Path], None]:
    return partial(array, change=lambda told: told.update(values))


def chunks(*sides: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": sides}}


def codecs(*names: str) -> Callable[[Path], None]:
    """With codecs after that of bytes."""
    settings = {
        "numcodecs.bz2": {"level": 1},
        "numcodecs.pickle": {},
        "numcodecs.delta": {"dtype": "|u1", "astype": "<u4"},
    }
    return changed(codecs=[{"name": name, "configuration": settings.get(name, {})} for name in ("bytes", *names)])


def pickles(path: Path) -> None:
    """Format 2, whose codecs numcodecs makes of their names: this one runs what is in a chunk."""
    bare_array(noise(1, 64, 96)[0], path, 2)
    edit(path / ".zarray", lambda told: told.update(filters=[{"id": "pickle", "protocol": 5}]))


def text(path: Path, name: str, content: str) -> None:
    path.mkdir()
    (path / name).write_bytes(content.encode(errors="surrogatepass"))


def group(path: Path, **arrays: tuple[int, ...]) -> None:
    zarr.open_group(path, mode="w")
    for name, shape in arrays.items():
        bare_array(np.zeros(shape, np.uint8), path / name, 3)


def within(path: Path) -> None:
    group(path)
    group(path / "r10m")


def times(path: Path) -> None:
    zarr.create_array(path, shape=(3, 64, 96), dtype="uint8", chunks=(1, 64, 96), dimension_names=("time", "y", "x"))


def ome(path: Path, where: str) -> None:
    bare_array(np.full((3, 40, 50), 7, np.uint8), path.parent / "secret", 3)
    ome_by_hand(noise(3, 40, 50), path, 3)
    (path / "link").symlink_to(path.parent / "secret")
    where = where.replace("DIR", str(path.parent))
    edit(path / "zarr.json", lambda told: told["attributes"]["ome"]["multiscales"][0]["datasets"][0].update(path=where))


def pipe(path: Path) -> None:
    array(path)
    (path / "c" / "1" / "1").unlink()
    os.mkfifo(path / "c" / "1" / "1")


def link(path: Path, part: str) -> None:
    array(path)
    (path / part).rename(path.parent / "elsewhere")
    (path / part).symlink_to(path.parent / "elsewhere")


def long(path: Path) -> None:
    array(path)
    os.truncate(path / "c" / "0" / "0", 2**40)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "chunks of a terabyte": (changed(chunk_grid=chunks(2**20, 2**20)), "store-unreadable"),
    "too many pixels": (changed(shape=[2**24, 2**24]), "raster-too-large"),
    "too many rows": (changed(shape=[2**40, 2]), "raster-too-large"),
    "too many bands": (changed(shape=[2**40, 2, 2], chunk_grid=chunks(1, 2, 2)), "raster-too-large"),
    "no sizes": (changed(shape=["a", {}]), "store-unreadable"),
    "sizes below zero": (changed(shape=[-5, 50]), "store-unreadable"),
    "no rows": (changed(shape=[0, 50]), "store-without-image"),
    "a grid of other chunks": (changed(chunk_grid={"name": "rectilinear"}), "store-unreadable"),
    "codecs of nothing": (changed(codecs=[None]), "store-unreadable"),
    "codecs that are none": (changed(codecs=7), "store-unreadable"),
    "pickles": (codecs("numcodecs.pickle"), "store-unreadable"),
    "pickles in format 2": (pickles, "store-unreadable"),
    "a codec of others": (codecs("numcodecs.bz2"), "store-unreadable"),
    "differences of another type": (codecs("numcodecs.delta"), "store-unreadable"),
    "transformers": (changed(storage_transformers=[{"name": "x"}]), "store-unreadable"),
    "attributes of text": (changed(attributes="x"), "store-unreadable"),
    "a scale of text": (changed(attributes={"scale_factor": "x"}), "store-unreadable"),
    "a scale of nothing": (changed(attributes={"scale_factor": 0}), "store-unreadable"),
    "a number beyond floats": (changed(attributes={"scale_factor": 10**400}), "store-unreadable"),
    "a transform of text": (changed(attributes={"spatial:transform": "x"}), "store-unreadable"),
    "a transform of NaN": (changed(attributes={"spatial:transform": [float("nan")] * 6}), "store-unreadable"),
    "a transform to a line": (changed(attributes={"spatial:transform": [1, 0, 0, 1, 0, 0]}), "store-unreadable"),
    "a system of PROJ's files": (changed(attributes={"proj:code": "+init=/etc/passwd:1"}), "crs-unknown"),
    "a system that is a file": (changed(attributes={"proj:code": "/etc/passwd"}), "crs-unknown"),
    **{
        f"pixels of {dtype}": (partial(array, dtype=dtype), "dtype-unsupported")
        for dtype in ("float64", "uint32", "int8", "bool", "complex64")
    },
    **{
        f"{name} is {content[:20]!r}": (partial(text, name=name, content=content), "store-unreadable")
        for name in ("zarr.json", ".zarray", ".zgroup")
        for content in ("", "[", "[" * 10**5, "7", "null", "\ud800", "x" * (2**24 + 1))
    },
    "nothing": (lambda path: path.mkdir(), "store-missing"),
    "an empty group": (group, "store-without-image"),
    "a group of groups": (within, "store-without-image"),
    "arrays of several sizes": (partial(group, a=(40, 50), b=(20, 25)), "store-of-several-images"),
    "a time of several": (times, "store-of-several-images"),
    **{f"a level at {where}": (partial(ome, where=where), "store-unreadable") for where in ("../secret", "DIR/secret")},
    "a level that is a link": (partial(ome, where="link"), "store-unreadable"),
    "a pipe for a chunk": (pipe, "pixels-unreadable"),
    "a link for a chunk": (partial(link, part="c/1/1"), "pixels-unreadable"),
    "a link for a folder": (partial(link, part="c/1"), "pixels-unreadable"),
    "a chunk of a terabyte": (long, "pixels-unreadable"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_stores(tmp_path: Path, what: str) -> None:
    make, code = BAD[what]
    path = tmp_path / "a.zarr"
    make(path)
    found = ZarrSource(path, 0, wkt_of)
    with refuses(code):
        size = found.info.size
        found.read(Window(0, 0, size.height, size.width), (1,))
    if code != "pixels-unreadable":  # seen before a chunk is
        with refuses(code):
            _ = found.info


def test_a_system_that_nobody_knows(tmp_path: Path) -> None:
    for text_ in ("EPSG:999999", "PROJCS[", "{}"):
        array(tmp_path / text_, lambda told, text_=text_: told.update(attributes={"proj:code": text_}))  # type: ignore[misc]
        with pytest.raises(InputError):
            _ = ZarrSource(tmp_path / text_, 0, wkt_of).info


def test_a_part_of_a_store_is_an_image(tmp_path: Path) -> None:
    group(tmp_path / "a.zarr", a=(40, 50), b=(20, 25))
    assert ZarrSource(tmp_path / "a.zarr" / "b", 0, wkt_of).info.size.width == 25
    with refuses("level-missing", level=1):
        _ = ZarrSource(tmp_path / "a.zarr" / "b", 1, wkt_of).info


def test_commands_end_with_one_line(tmp_path: Path) -> None:
    changed(shape=[0, 50])(tmp_path / "a.zarr")
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    refused(fcn_batch("segment", tmp_path / "a.zarr", "-m", model, "-q"), "store-without-image")
