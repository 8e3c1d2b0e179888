"""Inputs on servers and in archives: the same maps, hardly more bytes than needed, and nothing else reached."""

import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.shutil import copy as copy_raster
from zarr.storage import ObjectStore

from fcn_batch.pipeline.core.errors import InputError, OutputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.location import Url, input_of
from fcn_batch.pipeline.raster.gdal import gdal_cache, reaching
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from fcn_batch.pipeline.raster.remote import Bucket, store_of
from fcn_batch.workflows.blocks.reading import RowReader
from fcn_batch.workflows.plan import Options, prepare
from tests.errors import refused
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.remote_servers import Served, http_server, s3_server, slow_bucket
from tests.runs import DEGREES, class_map, fcn_batch, scene, segmented, small_blocks

obstore = pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served") as found:
        yield found


def cog(path: Path, height: int = 1500, width: int = 1600) -> Path:
    """A cloud-optimised GeoTIFF of some megabytes."""
    plain = write_raster(path.with_suffix(".plain.tif"), noise(3, height, width), crs="EPSG:4326", transform=DEGREES)
    copy_raster(plain, path, driver="COG", compress="deflate", blocksize=256, overviews="NONE")
    plain.unlink()
    return path


def block_bytes(path: Path, rows: slice, cols: slice) -> int:
    """Bytes of the storage blocks that hold these pixels."""
    with rasterio.open(path) as dataset:
        high, wide = dataset.block_shapes[0]
        return sum(
            int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1) or 0)
            for row in range(rows.start // high, -(-rows.stop // high))
            for col in range(cols.start // wide, -(-cols.stop // wide))
        )


def test_hardly_more_is_fetched_than_is_needed(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_blocks(monkeypatch, 2048)
    path = cog(served.folder / "a.tif")
    segmented(path, "-m", model, "-o", tmp_path / "local")
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "remote")
    assert (class_map(tmp_path / "remote", "a") == class_map(tmp_path / "local", "a")).all()
    needed = block_bytes(path, slice(0, 1500), slice(0, 1600))
    with capsys.disabled():
        sys.stdout.write(f"\nCOG: {needed:,} bytes needed, {served.bytes:,} fetched in {len(served.ranges)} requests\n")
    assert needed > 2e6
    assert served.bytes <= 1.2 * needed


def test_slabs_read_at_once_are_in_the_memory_that_a_plan_tells(served: Served, model: Path) -> None:
    path = cog(served.folder / "a.tif")
    here = prepare(path, Options(model=str(model), memory=2**30))
    there = prepare(Url(f"{served.url}/a.tif"), Options(model=str(model), memory=2**30))
    assert (here.ahead, there.ahead) == (1, 4)
    assert here.memory < there.memory <= 2**30
    little = prepare(Url(f"{served.url}/a.tif"), Options(model=str(model), memory=here.memory))
    assert (little.ahead, little.memory) == (1, here.memory)


def test_of_a_part_only_that_is_fetched(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_blocks(monkeypatch, 256)
    path = cog(served.folder / "a.tif")
    left, top = DEGREES @ (0, 0)
    right, bottom = DEGREES @ (1600, 200)
    box = f"--bbox={left},{bottom},{right},{top}"
    segmented(path, "-m", model, "-o", tmp_path / "local", box)
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "remote", box)
    assert (class_map(tmp_path / "remote", "a") == class_map(tmp_path / "local", "a")).all()
    halo = 128
    needed = block_bytes(path, slice(0, 256 + halo), slice(0, 1600))
    with capsys.disabled():
        sys.stdout.write(
            f"\npart: {needed:,} bytes needed, {served.bytes:,} fetched in {len(served.ranges)} requests\n"
        )
    assert served.bytes <= 1.2 * needed


@pytest.mark.parametrize("ahead", [1, 4])
def test_of_a_wide_raster_no_block_is_fetched_twice_nor_ahead(served: Served, ahead: int) -> None:
    """A row of its blocks is more than GDAL would fetch at once, and keep, by itself."""
    values = np.resize(np.arange(251, dtype=np.uint8), (2, 1024, 22016))
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "crs": "EPSG:4326", "transform": DEGREES}
    for name, window, interleave in (
        ("planes", Window(0, 0, 1024, 22016), "band"),
        ("pixels", Window(100, 600, 300, 20000), "pixel"),
    ):
        path = write_raster(served.folder / f"{name}.tif", values, interleave=interleave, **tiles)
        source, before = RasterioSource(Url(f"{served.url}/{name}.tif")), served.bytes
        with gdal_cache(256), RowReader(source, (1, 2), window, ahead) as reader:
            for row in range(window.row, window.stop_row, 100):
                found = reader.rows(row, min(row + 100, window.stop_row)).values
                assert (found == values[:, row : row + found.shape[1], window.col : window.stop_col]).all()
                reader.release(row)
        source.close()
        cols = slice(window.col, window.stop_col)
        needed = 2 * block_bytes(path, slice(window.row, window.stop_row), cols)
        assert served.bytes - before <= 1.01 * needed // (1 if name == "planes" else 2), name


def test_nothing_but_the_file_is_asked_for(served: Served) -> None:
    """Not its folder, of which some servers would send a page of names as long as a book."""
    copy_raster(cog(served.folder / "plain.tif"), served.folder / "a.tif", driver="COG", blocksize=256)
    info = inspect(Url(f"{served.url}/a.tif"))
    assert len(info.levels) > 1
    assert served.paths == {"/a.tif"}


def test_a_file_in_an_archive(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = scene(tmp_path / "a.tif")
    segmented(path, "-m", model, "-o", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "inner/b.tif")
    named = f"/vsizip/{tmp_path}/many.zip/inner/b.tif"
    segmented(named, "-m", model, "-o", tmp_path / "out", "--local-only")
    assert (class_map(tmp_path / "out", "b") == class_map(tmp_path / "out", "a")).all()
    for name in ("inner/none.tif", ""):
        result = fcn_batch("segment", f"/vsizip/{tmp_path}/many.zip/{name}", "-m", model, "-o", tmp_path / "x")
        assert result.exit_code == 4
    result = fcn_batch("segment", f"/vsizip/{tmp_path}/no.zip/b.tif", "-m", model)
    refused(result, "archive-missing", place=f"/vsizip/{tmp_path}/no.zip/b.tif")


def test_a_change_is_noticed(served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = scene(served.folder / "a.tif")
    options = [f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "out"]
    segmented(*options)
    assert "complete already" in segmented(*options).stderr
    write_raster(path, noise(3, 300, 330, seed=9), crs="EPSG:4326", transform=DEGREES)
    os.utime(path, ns=(10**18, 10**18))
    result = fcn_batch("segment", *options)
    assert result.exit_code == 6
    assert "--overwrite" in result.stderr


def test_what_was_fetched_before_is_fetched_again(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process: GDAL would keep what it has of a URL."""
    small_blocks(monkeypatch)
    path = scene(served.folder / "a.tif", compress="deflate")
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "first")
    write_raster(path, noise(3, 300, 330, seed=9), crs="EPSG:4326", transform=DEGREES, compress="deflate")
    os.utime(path, ns=(10**18, 10**18))
    segmented(path, "-m", model, "-o", tmp_path / "local")
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "second")
    assert (class_map(tmp_path / "second", "a") == class_map(tmp_path / "local", "a")).all()
    assert (class_map(tmp_path / "second", "a") != class_map(tmp_path / "first", "a")).any()


def test_what_cannot_be_reached(served: Served, model: Path, tmp_path: Path) -> None:
    for url in (f"{served.url}/none.tif", "http://127.0.0.1:9/a.tif"):
        result = fcn_batch("segment", url, "-m", model, "-o", tmp_path / "out")
        refused(result, "server-unreachable", place=url)
    result = fcn_batch("segment", f"{served.url}/none.tif", "-m", model, "--local-only")
    refused(result, "input-remote", path=f"{served.url}/none.tif")
    assert not (tmp_path / "out").exists()


def test_what_is_no_raster_there(served: Served) -> None:
    """Under the name that was given, without what GDAL makes of it."""
    (served.folder / "a.tif").write_bytes(b"nothing of the kind" * 100)
    error = refused(fcn_batch("plan", f"{served.url}/a.tif"), "format-unknown", path=f"{served.url}/a.tif")
    assert f"'{served.url}/a.tif'" in error.fields["reason"]


def test_names_that_are_quoted_in_urls(served: Served, model: Path, tmp_path: Path) -> None:
    scene(served.folder / "a b%.tif")
    segmented(f"{served.url}/a%20b%25.tif?version=1", "-m", model, "-o", tmp_path / "out")
    segmented(served.folder / "a b%.tif", "-m", model, "-o", tmp_path / "local")
    assert (class_map(tmp_path / "out", "a b%") == class_map(tmp_path / "local", "a b%")).all()


def test_a_server_that_fails_at_times(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr("fcn_batch.pipeline.core.tolerance.time.sleep", lambda _: None)
    path = cog(served.folder / "a.tif", 600, 600)
    segmented(path, "-m", model, "-o", tmp_path / "local")
    served.fail_every = 4
    result = segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "out", "--on-error", "retry:20")
    assert result.exit_code == 0
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "local", "a")).all()


def test_an_answer_that_breaks_off_is_asked_for_again(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL would take it for the end of the file, each time that this is opened again."""
    small_blocks(monkeypatch)
    path = cog(served.folder / "a.tif", 600, 600)
    segmented(path, "-m", model, "-o", tmp_path / "local")
    served.cut_every = 1
    result = fcn_batch("segment", f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "out")
    assert "#" not in str(refused(result, "pixels-unreadable", path=f"{served.url}/a.tif"))
    served.cut_every, served.answered = 2, 0
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "out", "--on-error", "retry:5")
    assert served.answered >= served.cut_every
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "local", "a")).all()


@pytest.mark.parametrize(
    "text",
    ["https://me:secret@host/a.tif", "https://host/a.tif?X-Amz-Signature=secret", "s3://key:secret@bucket/a.tif"],
)
def test_secrets_in_urls_are_refused_and_not_told(text: str) -> None:
    with pytest.raises(InputError) as caught:
        input_of(text)
    assert caught.value.code == "url-with-secret"
    assert "secret" not in f"{caught.value} {caught.value.fields}"


def test_a_text_that_names_a_url_fetches_nothing(served: Served) -> None:
    write_raster(served.folder / "a.tif", noise(3, 40, 50))
    for name in ("x.tif", "x.vrt"):
        (served.folder / name).write_text(
            '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f"<SourceFilename>/vsicurl/{served.url}/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        with pytest.raises(InputError):
            inspect(Url(f"{served.url}/{name}"))
    assert all(asked != "a.tif" for asked, _ in served.ranges)


def test_what_a_report_names_is_not_fetched_either(
    served: Served, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the report is somebody else's, of a URL that only this machine can reach."""
    small_blocks(monkeypatch)
    scene(served.folder / "a.tif", 90, 100)
    segmented(f"{served.url}/a.tif", "-m", model, "-o", tmp_path / "out")
    report, page = tmp_path / "out" / "a.run.json", tmp_path / "page.html"
    export = ("export", report, "--to", "html", "-o", page, "--overwrite")
    served.paths.clear()
    result = fcn_batch("verify", report, "--local-only")
    refused(result, "input-remote", path=f"{served.url}/a.tif")
    assert fcn_batch(*export, "--local-only").exit_code == 0
    assert "not shown: it is on another machine" in page.read_text()
    assert not served.paths
    assert fcn_batch(*export).exit_code == 0
    assert "not shown" not in page.read_text()
    scene(served.folder / "a.tif", 90, 100, compress="deflate")
    assert fcn_batch(*export).exit_code == 0
    assert "not shown: it is another one now" in page.read_text()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    with s3_server() as client:
        yield client


def test_objects_of_a_bucket(bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = cog(tmp_path / "a.tif", 600, 700)
    bucket.upload_file(str(path), "images", "2024/a.tif")
    segmented(path, "-m", model, "-o", tmp_path / "local")
    segmented("s3://images/2024/a.tif", "-m", model, "-o", tmp_path / "out")
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "local", "a")).all()
    told = json.loads((tmp_path / "out" / "a.run.json").read_text())["plan"]["input"]
    assert told["path"] == "s3://images/2024/a.tif"
    assert told["files"][0]["tag"]
    assert fcn_batch("verify", tmp_path / "out" / "a.run.json").exit_code == 0
    result = fcn_batch("segment", "s3://images/2024/none.tif", "-m", model, "-o", tmp_path / "out")
    refused(result, "server-unreachable", place="s3://images/2024/none.tif")
    assert np.unique(class_map(tmp_path / "out", "a")).size > 1


def test_an_object_that_was_replaced_is_fetched_again(
    bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as of a worker that stays alive."""
    small_blocks(monkeypatch)
    for number in (1, 2):
        path = write_raster(
            tmp_path / "a.tif", noise(3, 300, 330, seed=number), crs="EPSG:4326", transform=DEGREES, photometric="RGB"
        )
        bucket.upload_file(str(path), "images", "again/a.tif")
        assert fcn_batch("plan", "s3://images/again/a.tif", "-m", model).exit_code == 0
        segmented(path, "-m", model, "-o", tmp_path / f"local{number}")
        segmented("s3://images/again/a.tif", "-m", model, "-o", tmp_path / f"out{number}")
        assert (class_map(tmp_path / f"out{number}", "a") == class_map(tmp_path / f"local{number}", "a")).all()
    assert (class_map(tmp_path / "out1", "a") != class_map(tmp_path / "out2", "a")).any()


def objects(bucket: Any, prefix: str) -> list[str]:
    return sorted(one["Key"] for one in bucket.list_objects_v2(Bucket="images", Prefix=prefix).get("Contents", []))


def test_outputs_in_a_bucket(bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = scene(tmp_path / "a.tif")
    segmented(path, "-m", model, "-o", tmp_path / "local")
    work = tmp_path / "work"
    options = ["segment", path, "-m", model, "-o", "s3://images/maps/", "--work", work]
    result = fcn_batch(*options)
    assert result.exit_code == 0, result.stderr
    told = [f"s3://images/maps/a.{ending}" for ending in ("classes.zarr", "classes.tif", "run.json")]
    assert result.stdout.splitlines() == told
    assert not list(work.iterdir())
    local = class_map(tmp_path / "local", "a")
    store = zarr.open_group(
        ObjectStore(store_of(Url("s3://images"))[0], read_only=True), path="maps/a.classes.zarr", mode="r"
    )
    assert (np.asarray(store["classes"][...]) == local).all()  # type: ignore[index]
    with reaching("/vsis3/images/maps/a.classes.tif"), rasterio.open("/vsis3/images/maps/a.classes.tif") as dataset:
        assert (dataset.read(1) == local).all()
    made = objects(bucket, "maps/")
    again = fcn_batch(*options)
    assert again.exit_code == 0
    assert "complete already, in s3://images/maps/" in again.stderr
    other = fcn_batch(*options, "--tile", "64")
    assert other.exit_code == 6
    assert "of another run; give --overwrite" in other.stderr
    bucket.put_object(Bucket="images", Key="maps/a.classes.zarr/classes/c/9/9", Body=b"of a larger map")
    bucket.put_object(Bucket="images", Key="maps/a.classes.tif.mine", Body=b"mine")
    assert fcn_batch(*options, "--tile", "64", "--overwrite").exit_code == 0
    assert objects(bucket, "maps/") == sorted([*made, "maps/a.classes.tif.mine"])


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_shows_before_the_run(model: Path, tmp_path: Path) -> None:
    path, work = scene(tmp_path / "a.tif", 60, 70), tmp_path / "work"
    result = fcn_batch("segment", path, "-m", model, "-o", "s3://none-of-that-name/x", "--work", work)
    refused(result, "bucket-refused", place="s3://none-of-that-name/x")
    assert not work.exists()


def test_who_may_write_need_not_be_allowed_to_delete(
    bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Bucket, keys: Iterable[str]) -> None:
        if any(True for _ in keys):
            raise OutputError("bucket-refused", "AccessDenied")

    monkeypatch.setattr(Bucket, "delete", forbidden)
    path = scene(tmp_path / "a.tif", 60, 70)
    segmented(path, "-m", model, "-o", "s3://images/first", "--work", tmp_path / "work")
    assert "first/a.run.json" in objects(bucket, "first/")


def test_an_upload_that_breaks_off_is_gone_on_with(
    bucket: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    path = scene(tmp_path / "a.tif")
    options = ["segment", path, "-m", model, "-o", "s3://images/broken", "--work", tmp_path / "work"]
    proper = Bucket.write

    def write(self: Bucket, key: str, file: Path) -> None:
        if key.endswith(".qml"):
            raise OutputError("bucket-refused", "the line is dead")
        proper(self, key, file)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "write", write)
        result = fcn_batch(*options)
    assert "the line is dead" in result.stderr
    assert "broken/a.run.json" not in objects(bucket, "broken/")
    again = fcn_batch(*options)
    assert again.exit_code == 0, again.stderr
    assert "complete already" in again.stderr
    assert "broken/a.run.json" in objects(bucket, "broken/")
    assert not list((tmp_path / "work").iterdir())


def test_files_go_up_for_longer_than_a_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.pipeline.raster.remote._TIMEOUT", "1s")
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    with slow_bucket(2) as taken:
        Bucket(Url("s3://images/maps/")).write("a.bin", tmp_path / "a.bin")
    assert taken == ["/images/maps/a.bin"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-o", "s3://images/x", "--local-only"], "--local-only forbids"),
        (["-o", "https://host/x"], "nothing can be written there"),
        (["-o", "maps", "--work", "w"], "is for outputs that go to a bucket"),
        (["-o", "s3://images/x", "--part", "1/2"], "give a folder that all parts share"),
    ],
)
def test_destinations_that_are_refused(
    options: list[str], told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fcn_batch("segment", scene(tmp_path / "a.tif", 60, 70), "-m", model, *options)
    assert result.exit_code == 2
    assert told in result.stderr
