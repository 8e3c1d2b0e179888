"""Files made to do harm: refused with one line, before they read other files, call servers or take all memory."""

import errno
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import safetensors.torch
import torch
from click.testing import Result

from fcn_batch.pipeline.core.errors import InputError, ModelError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import MAX_SIDE, read_bounded
from fcn_batch.pipeline.core.text import printable
from fcn_batch.pipeline.network.weights import load_model, read_card
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.raster.labels import Grid, open_labels
from fcn_batch.pipeline.raster.mapfile import MapFile
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import thumbnail
from tests.errors import refused, refuses
from tests.faults import mutate
from tests.models import save_factory_model, save_tiny_model, tiny_card, tiny_network
from tests.rasters import noise, write_raster
from tests.remote_servers import Served, http_server
from tests.runs import fcn_batch, scene, segmented, small_blocks

SECRET = 7
"""The value of all pixels of a file that no other may give away."""
DISGUISES = ("x.tif", "x.jp2", "x.hdr", "x")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # with which GDAL asks the server itself, whatever proxy it is told
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served") as served:
        yield served


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    return write_raster(tmp_path / "private" / "secret.tif", np.full((1, 32, 32), SECRET, np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@contextmanager
def opened(path: Path, mode: str, **options: Any) -> Iterator[Any]:
    """A raster to write to, without rasterio's warning that it lies nowhere."""
    with accept_pixel_space(), rasterio.open(path, mode, **options) as dataset:
        yield dataset


def vrt(source: str) -> str:
    return (
        '<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )


def tile_service(url: str) -> str:
    corners = "<UpperLeftX>0</UpperLeftX><UpperLeftY>32</UpperLeftY><LowerRightX>32</LowerRightX><LowerRightY>0"
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        f"{corners}</LowerRightY><SizeX>32</SizeX><SizeY>32</SizeY><TileLevel>0</TileLevel></DataWindow>"
        "<BandsCount>1</BandsCount><BlockSizeX>32</BlockSizeX><BlockSizeY>32</BlockSizeY></GDAL_WMS>"
    )


def texts(secret: Path, server: Served) -> dict[str, str]:
    """Files that are texts, and name others."""
    return {
        "local": vrt(str(secret)),
        "http": vrt(f"{server.url}/http.tif"),
        "curl": vrt(f"/vsicurl/{server.url}/curl.tif"),
        "service": tile_service(server.url),
        "nested": vrt(vrt(str(secret)).replace("<", "&lt;")),
    }


def whole(path: Path) -> np.ndarray[Any, Any]:
    return RasterioSource(path, inspect(path)).read(Window(0, 0, 32, 32), (1,)).values


def ids_of(path: Path) -> Any:
    return MapFile(path).read(Window(0, 0, 32, 32))


def labels_of(path: Path) -> Any:
    return open_labels(path, Grid(Size(32, 32), GeoReference(None, IDENTITY))).read(Window(0, 0, 32, 32))


def one_line(result: Result, code: int) -> str:
    """The error that a command ended with."""
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("fcn-batch: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


READERS: dict[str, Callable[[Path], Any]] = {
    "input": whole,
    "map": ids_of,
    "labels": labels_of,
    "picture": lambda path: thumbnail(identify(inspect(path)), (1,), 4),
}


@pytest.mark.parametrize("reader", READERS)
def test_texts_in_disguise_and_beside_a_raster_read_nothing(
    tmp_path: Path, secret: Path, server: Served, reader: str
) -> None:
    path = write_raster(tmp_path / "y.tif", noise(1, 32, 32))
    beside = [Path(f"{path}{suffix}") for suffix in (".msk", ".ovr", ".MSK", ".OVR")]
    for text in texts(secret, server).values():
        for file in (*(tmp_path / name for name in DISGUISES), *beside):
            file.write_text(text)
            with pytest.raises(InputError):
                READERS[reader](path if file in beside else file)
            file.unlink()
    assert not server.asked


@pytest.mark.parametrize("where", ["tag", "side file", "mask's tag"])
def test_overviews_elsewhere_are_refused(tmp_path: Path, secret: Path, server: Served, where: str) -> None:
    targets = [str(secret), f"{server.url}/x.tif", f"/vsicurl/{server.url}/x.tif", *texts(secret, server).values()]
    for number, target in enumerate([*targets, ":::BASE:::../private/secret.tif"]):
        path = tagged = write_raster(tmp_path / f"{number}.tif", noise(1, 32, 32))
        if where == "mask's tag":
            tagged = write_raster(Path(f"{path}.msk"), np.full((1, 32, 32), 255, np.uint8))
        if where == "side file":
            text = target.replace("<", "&lt;")
            Path(f"{path}.aux.xml").write_text(
                '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
                f"{text}</MDI></Metadata></PAMDataset>"
            )
        else:
            with opened(tagged, "r+") as dataset:
                dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
        with pytest.raises(InputError):
            thumbnail(identify(inspect(path)), (1,), 4)
        with pytest.raises(InputError):
            inspect(path)
    assert not server.asked


def test_companions_that_are_rasters_are_read(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "x.tif", noise(1, 32, 32))
    with rasterio.Env(TIFF_USE_OVR="YES", GDAL_TIFF_INTERNAL_MASK="NO"), opened(path, "r+") as dataset:
        dataset.write_mask(np.arange(32)[:, np.newaxis] * np.ones(32) >= 5)
        dataset.build_overviews([2])
    info = inspect(path)
    assert {Path(name).name for name in info.files} >= {"x.tif", "x.tif.msk", "x.tif.ovr"}
    assert not RasterioSource(path, info).read(Window(0, 0, 32, 32), (1,)).valid[:5].any()


@pytest.mark.parametrize("source", ["{url}/x.tif", "/vsicurl/{url}/x.tif", "service.xml", "/vsicurl?url={url}/x.tif"])
def test_a_vrt_by_name_reaches_no_server_in_any_way(tmp_path: Path, server: Served, source: str) -> None:
    (tmp_path / "service.xml").write_text(tile_service(server.url))
    path = tmp_path / "x.vrt"
    path.write_text(vrt(str(tmp_path / source) if source.endswith(".xml") else source.format(url=server.url)))
    with pytest.raises(InputError):
        whole(path)
    assert not server.asked


def test_drivers_that_call_servers_are_not_there() -> None:
    with local_only() as env:
        assert not {"HTTP", "WMS", "WCS", "WMTS", "EEDAI", "PLMOSAIC"} & set(env.drivers())
        assert {"GTiff", "COG", "PNG", "JPEG", "JP2OpenJPEG", "HFA", "ENVI", "VRT", "MEM"} <= set(env.drivers())


@pytest.mark.parametrize("size", [(16, MAX_SIDE + 1), (MAX_SIDE + 1, 16), (2**22, 2**21), (1, 1)])
def test_rasters_of_absurd_size_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        inspect(sparse(tmp_path / "x.tif", *size, count=5000 if size == (1, 1) else 1))


def test_a_small_file_that_claims_twelve_terabytes_can_be_planned(tmp_path: Path, model: Path) -> None:
    path = sparse(tmp_path / "x.tif", 2_000_000, 2_000_000, count=3)
    assert path.stat().st_size < 8_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = fcn_batch("plan", path, "-m", model, "--memory", "2GiB")
    assert result.exit_code == 0, result.stderr
    assert "2000000 x 2000000 px" in result.stdout
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


def sparse(path: Path, height: int, width: int, count: int = 1) -> Path:
    """A TIFF without a single block."""
    options = {"driver": "GTiff", "dtype": "uint8", "tiled": True, "blockxsize": 4096, "blockysize": 4096}
    options |= {"SPARSE_OK": "TRUE", "BIGTIFF": "YES", "interleave": "pixel"}
    with opened(path, "w", height=height, width=width, count=count, **options):
        pass
    return path


def test_a_mask_in_giant_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        options = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 64, "width": 64}
        with opened(path, "w", tiled=True, blockxsize=16, blockysize=16, **options) as dataset:
            dataset.write(noise(1, 64, 64))
            dataset.write_mask(np.arange(64 * 64).reshape(64, 64) % 3 > 0)
    data = bytearray(path.read_bytes())
    for at in mutate._entries(bytes(data)):
        tag = struct.unpack_from("<H", data, at)[0]
        in_mask = at > max(a for a in mutate._entries(bytes(data)) if struct.unpack_from("<H", data, a)[0] == 254) - 1
        if in_mask and tag in (322, 323):
            struct.pack_into("<HII", data, at + 2, 4, 1, 32768)
    path.write_bytes(data)
    with pytest.raises(InputError):
        inspect(path)


# -- stores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        segmented(scene(folder / "a.tif", 200, 240), "-m", model, "-o", folder)
    return folder


@pytest.fixture
def store(tmp_path: Path, finished: Path) -> Path:
    shutil.copytree(finished, tmp_path / "made")
    return tmp_path / "made" / "a.classes.zarr"


def chunks(side: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [side, side]}}


def codecs(*names: str) -> dict[str, Any]:
    return {"codecs": [{"name": name, "configuration": {}} for name in ("bytes", *names)]}


def sharding(inner: int) -> dict[str, Any]:
    told = {"chunk_shape": [inner, inner], "codecs": codecs()["codecs"], "index_codecs": codecs("crc32c")["codecs"]}
    return {"codecs": [{"name": "sharding_indexed", "configuration": told}]}


HOSTILE_METADATA: dict[str, dict[str, Any] | str] = {
    "one chunk": {"shape": [30000, 30000], "chunk_grid": chunks(30000)},
    "inner chunk": {"shape": [30000, 30000], "chunk_grid": chunks(60000), **sharding(30000)},
    "shard": {"chunk_grid": chunks(2**17), **sharding(2**10)},
    "side": {"shape": [2**40, 10]},
    "area": {"shape": [2**24, 2**24]},
    "negative": {"shape": [-1, 10]},
    "float": {"shape": [10.5, 10]},
    "no chunk": {"chunk_grid": chunks(0)},
    "axes": {"shape": [4] * 20, "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4] * 20}}},
    "type": {"data_type": "float64", "shape": [2**25, 2**25]},
    "other type": {"data_type": "complex128"},
    "text": {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}},
    "pickle": codecs("numcodecs.pickle"),
    "bz2": codecs("numcodecs.bz2"),
    "transformers": {"storage_transformers": [{"name": "x"}]},
    "old": {"zarr_format": 2},
    "brackets": "[" * 200_000,
    "braces": '{"a":' * 200_000,
    "a list": "[]",
    "a number": "5",
    "null": "null",
    "nothing": "",
    "a number of 5000 digits": '{"shape": 1' + "0" * 5000 + "}",
    "too long": " " * (2**24 + 1),
}


@pytest.mark.parametrize("what", HOSTILE_METADATA)
def test_hostile_metadata_of_stores_are_refused(store: Path, what: str) -> None:
    file = store / "classes" / "zarr.json"
    changes = HOSTILE_METADATA[what]
    if isinstance(changes, str):
        file.write_text(changes)
    else:
        file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))
    with refuses("map-not-ours", path=store):
        FinishedMap(store)
    with refuses("output-damaged", path=store):
        ClassStore(store)
    if what == "pickle":
        error = refused(fcn_batch("export", store, "--to", "csv", "-o", store.parent / "a.csv", "-q"), "map-not-ours")
        assert len(str(error)) < 1000
        assert fcn_batch("validate", store.parent, "-q").exit_code == 9


def linked(store: Path, part: str) -> None:
    shutil.move(store / part, store.parent / "elsewhere")
    (store / part).symlink_to(store.parent / "elsewhere")


@pytest.mark.parametrize("what", ["long", "pipe", "link"])
def test_chunks_that_are_not_read(store: Path, what: str) -> None:
    chunk = store / "classes/c/0/0"
    if what == "long":
        os.truncate(chunk, 2**40)
    elif what == "pipe":
        chunk.unlink()
        os.mkfifo(chunk)
    else:
        linked(store, "classes/c/0/0")
    with refuses("map-damaged", path=store):
        FinishedMap(store).read(Window(0, 0, 10, 10))


def test_links_in_a_store_lead_nowhere_else(store: Path) -> None:
    (store.parent / "b.classes.zarr").symlink_to(store)  # the whole store may be one
    assert FinishedMap(store.parent / "b.classes.zarr").read(Window(0, 0, 10, 10)).shape == (10, 10)
    with refuses("output-damaged"):
        ClassStore(store.parent / "b.classes.zarr")
    made = ClassStore(store)
    linked(store, "classes/c/0")
    before = (store / "classes/c/0/0").read_bytes()
    with pytest.raises(ValueError):
        made.write(Window(0, 0, 128, 128), np.zeros((128, 128), np.uint8))
    assert (store / "classes/c/0/0").read_bytes() == before
    shutil.rmtree(store.parent / "elsewhere")
    linked(store, "classes")
    with refuses("map-not-ours", path=store):
        FinishedMap(store)


# -- models


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: str | dict[str, Any], rest: bytes = b"") -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    return path


def with_card(tmp_path: Path, model: Path, **changes: Any) -> Path:
    header, rest = header_of(model)
    card = json.loads(header["__metadata__"]["fcn_batch.model_card"])
    for place, value in changes.items():
        *above, last = place.split("__")
        inner = card
        for key in above:
            inner = inner[key]
        inner[last] = value
    header["__metadata__"]["fcn_batch.model_card"] = json.dumps(card)
    return with_header(tmp_path / "m.safetensors", header, rest)


@pytest.mark.parametrize(
    "changes",
    [
        *({"shape": shape} for shape in ([2**32, 2**32], [2**63], [10**12], [-1], [2**31, 2**31, 2**31])),
        *(
            {"data_offsets": place}
            for place in ([0, 2**63], [2**40, 2**40 + 4], [4, 0], [0, 0], [-4, 0], [0, 2**64 - 1])
        ),
        *({"dtype": dtype} for dtype in ("F64", "U8", "BOOL", "F4", "X")),
    ],
    ids=str,
)
def test_tensors_that_lie(tmp_path: Path, model: Path, changes: dict[str, Any]) -> None:
    header, rest = header_of(model)
    name = next(name for name in header if name != "__metadata__")
    header[name].update(changes)
    with pytest.raises(ModelError):
        load_model(with_header(tmp_path / "m.safetensors", header, rest))


def no_tensors(path: Path, model: Path) -> None:
    header, _ = header_of(model)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(0)}, metadata=header["__metadata__"]))


def of_a_hundred_gigabytes(path: Path, model: Path) -> None:
    shutil.copy(model, path)
    os.truncate(path, 100 * 2**30)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("m.safetensors", no_tensors),
        ("m.safetensors", of_a_hundred_gigabytes),
        ("m.safetensors", lambda path, _: os.mkfifo(path)),
        ("m.toml", lambda path, _: os.mkfifo(path)),
        ("m.safetensors", lambda path, _: path.symlink_to("/dev/zero")),
    ],
    ids=["no tensors", "of 100 GiB", "a pipe", "a pipe of TOML", "a device"],
)
def test_files_that_are_no_models(
    tmp_path: Path, model: Path, name: str, make: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / name, model)
    with pytest.raises(ModelError):
        load_model(tmp_path / name)
    monkeypatch.setattr("fcn_batch.pipeline.network.weights.free_memory", lambda _: 1000)
    with pytest.raises(ModelError):  # larger than memory
        read_card(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture__fc_channels": 10**12},
        {"architecture__fc_kernel": 10**9},
        {"architecture__width": 1e300},
        {"stride": 2**62},
        {"stride": 10**400},
        {"halo": 2**62},
        {"phase": 10**30},
        {"input__gsd_m": 1e-320},
        {"legend__classes": [{"id": k, "name": f"c{k}", "colour": "#000000"} for k in range(65_000)]},
        {"legend__classes": [{"id": k, "name": "same", "colour": "#000000"} for k in range(60_000)]},
        {"input__bands": [{"name": f"b{k}", "mean": 0, "std": 1} for k in range(100_000)]},
        {"summary": "x" * 20_000_000},
        {"architecture": json.loads("[" * 500 + "]" * 500)},
    ],
    ids=str.split("channels kernel width stride stride-too-long halo phase gsd classes same bands summary deep"),
)
def test_cards_that_claim_absurd_networks_are_one_line(tmp_path: Path, model: Path, changes: dict[str, Any]) -> None:
    path, raster = with_card(tmp_path, model, **changes), scene(tmp_path / "a.tif", 40, 40)
    if "input__gsd_m" in changes:
        assert fcn_batch("plan", raster, "-m", path).exit_code == 0
    else:
        assert len(one_line(fcn_batch("plan", raster, "-m", path), 5)) < 1500


@pytest.mark.parametrize("place", ["legend__classes", "input__bands"])
def test_names_that_a_terminal_would_obey_are_refused(tmp_path: Path, model: Path, place: str) -> None:
    above, last = place.split("__")
    listed = tiny_card(tiny_network()).model_dump(mode="json")[above][last]
    listed[0]["name"] = "red\x1b[2J"
    with pytest.raises(ModelError):
        read_card(with_card(tmp_path, model, **{place: listed}))


def test_weights_must_lie_beside_their_description(tmp_path: Path) -> None:
    toml = save_factory_model(tmp_path / "m" / "m.toml")
    weights = toml.with_suffix(".safetensors")
    text = toml.read_text()
    assert read_card(toml).card.stride == 4
    (toml.parent / "below").mkdir()
    shutil.copy(weights, toml.parent / "below" / "w.safetensors")
    shutil.copy(weights, tmp_path / "w.safetensors")
    (toml.parent / "link.safetensors").symlink_to(tmp_path / "w.safetensors")
    toml.write_text(text.replace('"m.safetensors"', '"below/w.safetensors"'))
    assert read_card(toml).card.stride == 4
    for elsewhere in ("../w.safetensors", f"{tmp_path}/w.safetensors", "link.safetensors", "below/../../w.safetensors"):
        toml.write_text(text.replace('"m.safetensors"', f'"{elsewhere}"'))
        with pytest.raises(ModelError):
            read_card(toml)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a." * 50_000 + "b = 1",
        r"""'a'."b\".c" . """ * 20_000 + "x = 1",
        "x = " + "9" * 10_000,
        "# " + "x" * 2**20,
        None,
    ],
    ids=["brackets", "dots", "quoted", "digits", "long", "a terabyte"],
)
def test_descriptions_and_recipes_that_are_nested_or_huge(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text or "")
    if text is None:
        os.truncate(path, 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one_line(fcn_batch("model", "info", path), 5)
    one_line(fcn_batch("train", path), 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB"
    if text is None:
        with pytest.raises(OSError) as error:
            read_bounded(path, 100)
        assert error.value.errno == errno.EFBIG


# -- terminals

ESCAPES = "a\x1b[31m\x1b]0;title\x07b\rc\x9b2J\u202e.tif"
OBEYED = set("\x1b\x07\r\x9b\u202e")


def test_what_a_terminal_would_obey_is_shown() -> None:
    shown = printable(ESCAPES)
    assert shown == r"a\x1b[31m\x1b]0;title\x07b\rc\x9b2J\u202e.tif"
    for plain in ("größe", "名前 7", "one\ntwo", "\N{ZERO WIDTH JOINER}"):
        assert printable(plain) == plain


def test_names_of_files_are_printed_safely(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    raster = scene(tmp_path / ESCAPES, 150, 40)
    results = [
        fcn_batch("segment", raster, "-m", model, "-o", tmp_path / "out"),
        fcn_batch("segment", raster, "-m", model, "-o", tmp_path / "out"),  # complete already
        fcn_batch("plan", raster, "-m", model),
        fcn_batch("segment", tmp_path / f"missing{ESCAPES}", "-m", model),
        fcn_batch("plan", raster, ESCAPES, "-m", model),
        fcn_batch("plan", raster, "-m", ESCAPES),
        fcn_batch(ESCAPES),
    ]
    assert [result.exit_code for result in results] == [0, 0, 0, 4, 2, 5, 2]
    for number, result in enumerate(results):
        told = result.stderr + (result.stdout if number > 1 else "")  # paths are for programs where nobody looks on
        assert r"\x1b[31m" in told
        assert not set(told) & OBEYED, told


def test_tags_and_cards_are_printed_safely(tmp_path: Path, model: Path) -> None:
    raster = write_raster(tmp_path / "a.tif", noise(3, 40, 40))
    with opened(raster, "r+") as dataset:
        dataset.descriptions = (ESCAPES, "green", "blue")
    hostile = with_card(tmp_path, model, summary=ESCAPES, version=ESCAPES)
    results = [
        fcn_batch("plan", raster, "-m", hostile),
        fcn_batch("model", "info", hostile),
        segmented(raster, "-m", hostile, "-o", tmp_path / "out"),
    ]
    for result in results:
        assert result.exit_code == 0, result.stderr
        assert not set(result.output) & OBEYED, result.output
    assert r"\x1b[31m" in results[1].stdout
