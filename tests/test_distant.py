"""Zarr stores at URLs: the same image as on a disk, by real servers of HTTP and S3, with hardly more fetched."""

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, ShardingCodec

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.core.source import Pixels, RasterInfo
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.remote import folder_of
from fcn_batch.pipeline.store.opening import Guarded
from fcn_batch.pipeline.store.zarrsource import ZarrSource
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import find_source, source_of
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.remote_servers import Served, http_server, s3_server
from tests.runs import DEGREES, class_map, fcn_batch, scene, segmented, small_blocks
from tests.zarrs import WRITERS, Format, bare_array, by_gdal, by_xarray


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served") as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def put(bucket: Any, folder: Path, key: str) -> Url:
    """A store, as objects."""
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), "images", f"{key}/{path.relative_to(folder).as_posix()}")
    return Url(f"s3://images/{key}")


def source(place: Url | Path, level: int = 0) -> ZarrSource:
    return ZarrSource(place, level, wkt_of, folder_of)


def whole(of: ZarrSource) -> Pixels:
    size = of.info.size
    return of.read(Window(0, 0, size.height, size.width), tuple(range(1, of.info.bands + 1)))


def told(info: RasterInfo) -> RasterInfo:
    """What is the same wherever a store is."""
    return replace(info, path="", files=(), sources=())


def same(distant: ZarrSource, local: ZarrSource) -> None:
    found, wanted = whole(distant), whole(local)
    assert (found.values == wanted.values).all()
    assert (found.valid == wanted.valid).all()
    assert told(distant.info) == told(local.info)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("writer", [*WRITERS, "gdal"])
def test_the_image_is_the_one_on_the_disk(
    served: Served, bucket: Any, tmp_path: Path, writer: str, version: Format
) -> None:
    values = noise(3, 90, 70)
    values[:, 20:40, 5:60] = 7
    nodata = None if writer == "gdal" else 7
    tif = write_raster(tmp_path / "a.tif", values, crs="EPSG:4326", transform=DEGREES, nodata=nodata)
    path = {**WRITERS, "gdal": by_gdal}[writer](tif, served.folder / "a b%.zarr", version)
    distant = source(put(bucket, path, f"{writer}{version}.zarr"))
    same(distant, source(path))
    assert whole(distant).valid.all() == (nodata is None)
    url = Url(f"{served.url}/a%20b%25.zarr")
    if (writer, version) in {("gdal", 3), ("conventions", 2), ("conventions", 3)}:  # without consolidated metadata
        with refuses("store-not-listed", path=url):
            _ = source(url).info
        inner = next(one.parent for name in ("zarr.json", ".zarray") for one in path.glob(f"*/{name}"))
        url = Url(f"{url}/{inner.name}")
        path /= inner.name
        if writer == "gdal":  # what is beside it says more
            assert (whole(source(url)).values == whole(source(path)).values).all()
            return
    same(source(url), source(path))


def test_levels_and_what_is_above(served: Served) -> None:
    values = noise(3, 64, 80)
    path = served.folder / "slides" / "a.zarr"
    for level in (1, 2):
        bare_array(values[:, ::level, ::level].copy(), path / "pyramid" / str(level - 1), 3)
    group = zarr.open_group(path, mode="a", zarr_format=3)
    axes: list[Any] = [
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx"),
    ]
    levels: list[Any] = [
        {"path": f"pyramid/{k}", "coordinateTransformations": [{"type": "scale", "scale": [1, 2**k / 2, 2**k / 2]}]}
        for k in (0, 1)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    url = Url(f"{served.url}/slides/a.zarr/")
    for level in (0, 1):
        same(source(url, level), source(path, level))
    assert source(url, 1).info.microns == 1.0
    chosen = find_source(url, 1)
    assert (source_of(identify(chosen.info)).read(Window(0, 0, 32, 40), (2,)).values == values[1:2, ::2, ::2]).all()


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("place", ["http", "s3"])
def test_of_a_shard_only_what_is_needed_is_fetched(
    served: Served, bucket: Any, location: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = noise(1, 512, 512)[0]
    sharding = ShardingCodec(chunk_shape=(64, 64), codecs=[BytesCodec()], index_location=location)
    path = bare_array(values, served.folder / "a.zarr", 3, chunks=(512, 512), serializer=sharding, compressors=None)
    url = Url(f"{served.url}/a.zarr") if place == "http" else put(bucket, path, f"{location}.zarr")
    found = source(url)
    _ = found.info
    fetched: list[int] = []
    get = Guarded.get

    async def counted(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        got = await get(self, *args, **kwargs)
        fetched.append(len(got or b""))
        return got

    monkeypatch.setattr(Guarded, "get", counted)
    before = served.bytes
    window = Window(64, 128, 64, 64)
    assert (found.read(window, (1,)).values[0] == values[window.slices()]).all()
    assert fetched == [16 * 64 + 4, 64 * 64]
    if place == "http":
        assert served.bytes - before == sum(fetched)
    assert (whole(found).values[0] == values).all()


def test_maps_of_stores_at_urls(
    served: Served, bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    path = by_xarray(scene(tmp_path / "a.tif", nodata=30), served.folder / "a.zarr", 3)
    options = ("-m", model, "--bands", "1,2,3")
    segmented(path, *options, "-o", tmp_path / "local")
    url = put(bucket, path, "maps/a.zarr")
    for given, out in ((str(url), "s3"), (f"{served.url}/a.zarr", "http")):
        segmented(given, *options, "-o", tmp_path / out)
        assert (class_map(tmp_path / out, "a") == class_map(tmp_path / "local", "a")).all()
        assert fcn_batch("verify", tmp_path / out / "a.run.json").exit_code == 0
        assert "complete already" in segmented(given, *options, "-o", tmp_path / out).stderr
    assert json.loads((tmp_path / "s3" / "a.run.json").read_text())["plan"]["input"]["files"][-1]["listing"]
    result = fcn_batch("plan", f"{served.url}/a.zarr", "--local-only")
    assert result.exit_code == OptionError.exit_code


def test_a_chunk_or_metadata_written_anew_is_another_input(served: Served, bucket: Any) -> None:
    path = bare_array(noise(1, 64, 96)[0], served.folder / "a.zarr", 3)
    url = put(bucket, path, "anew/a.zarr")
    before = identify(find_source(url).info)
    assert identify(find_source(url).info) == before
    bucket.put_object(Bucket="images", Key="anew/a.zarr-not/c/0/0", Body=b"of another store")
    assert identify(find_source(url).info) == before
    chunk = path / "c" / "0" / "1"
    bucket.put_object(Bucket="images", Key="anew/a.zarr/c/0/1", Body=chunk.read_bytes()[::-1])
    assert identify(find_source(url).info).files != before.files
    web = Url(f"{served.url}/a.zarr")
    before = identify(find_source(web).info)
    changed = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps({**changed, "attributes": {"nodata": 3}}))
    assert identify(find_source(web).info).files != before.files


def test_sources_go_to_other_processes(served: Served) -> None:
    values = noise(1, 64, 96)[0]
    bare_array(values, served.folder / "a b.zarr", 3)
    found = source(Url(f"{served.url}/a%20b.zarr"))
    _ = found.info
    assert (whole(pickle.loads(pickle.dumps(found))).values[0] == values).all()  # noqa: S301 - our own


def test_missing_chunks_are_the_fill_value_and_a_missing_store_is_not(served: Served) -> None:
    path = bare_array(np.full((64, 96), 5, np.uint8), served.folder / "a.zarr", 3, fill_value=3)
    (path / "c" / "1" / "0").unlink()
    found = source(Url(f"{served.url}/a.zarr"))
    values = whole(found).values[0]
    assert (values[32:, :48] == 3).all()
    assert (values[:32] == 5).all()
    shutil.rmtree(path)
    with refuses("pixels-unreadable"):
        whole(found)


def test_a_server_that_fails_at_times(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr("fcn_batch.pipeline.core.tolerance.time.sleep", lambda _: None)
    path = by_xarray(scene(tmp_path / "a.tif"), served.folder / "a.zarr", 3)
    options = ("-m", model, "--bands", "1,2,3")
    segmented(path, *options, "-o", tmp_path / "local")
    served.fail_every = 5
    segmented(f"{served.url}/a.zarr", *options, "-o", tmp_path / "out", "--on-error", "retry:20")
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "local", "a")).all()


def test_what_is_no_store_is_one_line(served: Served, tmp_path: Path) -> None:
    (served.folder / "text.zarr").mkdir()
    (served.folder / "text.zarr" / "zarr.json").write_text("[]")
    for url, code in (
        (f"{served.url}/none.zarr", "store-missing"),
        (f"{served.url}/none/", "store-missing"),
        (f"{served.url}/text.zarr", "store-unreadable"),
        (f"{served.url}/text.zarr?version=1", "url-with-query"),
        ("http://127.0.0.1:9/a.zarr", "store-unreadable"),
        (f"/vsizip/{tmp_path}/a.zip/a.zarr", "store-in-archive"),
    ):
        refused(fcn_batch("plan", url), code)
