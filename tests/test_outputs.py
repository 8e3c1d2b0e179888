"""What a run publishes beside its map: confidences, pyramid, style, item, shards, points; and what becomes of them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tensorstore
import xarray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.inputs.identity import file_sha256
from fcn_batch.workflows.outputs import finish
from fcn_batch.workflows.outputs.checksums import checksums
from fcn_batch.workflows.outputs.publishing import Outputs, find_outputs, find_run
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, output_bytes, scene, segmented, small_blocks, tree

ALL = ["--confidence", "--pyramid"]
STORE, SURE, PYRAMID = "a.classes.zarr", "a.confidence.zarr", "a.pyramid.zarr"
NAMES = {STORE, "a.classes.tif", "a.classes.tif.aux.xml", "a.classes.qml", "a.stac.json", "a.run.json"}


class Killed(BaseException):
    """The process ends here, as far as the program can tell."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A folder with a.tif (9 blocks) and all outputs of an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        segmented(scene(folder / "a.tif"), "-m", model, "-q", *ALL)
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"a.tif"}


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of the maps, confidences and pyramid too."""
    optional = [p for name in (SURE, PYRAMID) for p in (folder / name).rglob("*") if p.is_file()]
    return {**output_bytes(folder, "a"), **{str(p.relative_to(folder)): p.read_bytes() for p in optional}}


def report_of(folder: Path) -> dict[str, Any]:
    return find_run(folder)[1]


# --- what is made --------------------------------------------------------------------------------------------


def test_all_outputs_are_there_told_and_listed(made: Path, tmp_path: Path, model: Path) -> None:
    result = segmented(made / "a.tif", "-m", model, "-o", tmp_path, *ALL)
    told = [STORE, "a.classes.tif", SURE, PYRAMID, "a.run.json"]
    assert result.stdout == "".join(f"{tmp_path / name}\n" for name in told)
    assert names(tmp_path) == {*NAMES, SURE, PYRAMID}
    assert set(report_of(tmp_path)["outputs"]) == names(tmp_path) - {"a.run.json"}
    assert all_bytes(tmp_path) == all_bytes(made)


def test_confidences_lie_on_the_map_and_are_numbers_from_0_to_1(made: Path) -> None:
    with xarray.open_zarr(made / SURE) as sure, xarray.open_zarr(made / STORE) as map_:
        assert list(sure.data_vars) == ["confidence", "margin"]
        for array in (sure.confidence, sure.margin):
            assert np.issubdtype(array.dtype, np.floating)
            assert array.attrs["units"] == "1"
            assert 0 <= float(array.min()) < float(array.max()) <= 1
            assert array.attrs["proj:code"] == "EPSG:4326"
        assert float(sure.confidence.min()) > 1 / 6 - 0.002, "the best of six classes"
        assert (sure.margin <= sure.confidence).all()
        assert (sure.x.values == map_.x.values).all()
        assert (sure.y.values == map_.y.values).all()
        assert sure.attrs["fcn:fingerprint"] == map_.attrs["fcn:fingerprint"]


def test_the_report_holds_the_hash_of_each_block_and_of_every_file(made: Path) -> None:
    report = report_of(made)
    assert len(report["journal"]["sha256"]) == len(report["journal"]["confidence_sha256"]) == report["blocks"] == 9
    files = {
        str(path.relative_to(made))
        for name in report["outputs"]
        for path in ([made / name] if (made / name).is_file() else (made / name).rglob("*"))
        if path.is_file()
    }
    assert set(report["checksums"]) == files
    assert report["checksums"]["a.classes.tif"] == file_sha256(made / "a.classes.tif")
    assert checksums(made, ["a.classes.qml"]) == {"a.classes.qml": report["checksums"]["a.classes.qml"]}


def test_shards_hold_the_same_map_in_fewer_files(made: Path, tmp_path: Path, model: Path) -> None:
    segmented(made / "a.tif", "-m", model, "-q", "-o", tmp_path, "--shard", "256", *ALL)
    expected = class_map(made, "a")
    assert (class_map(tmp_path, "a") == expected).all()
    chunks = [p for p in (tmp_path / STORE / "classes" / "c").rglob("*") if p.is_file()]
    assert len(chunks) == 4
    with xarray.open_zarr(tmp_path / STORE) as dataset:
        assert dataset.classes.encoding["chunks"] == (128, 128)
        assert dataset.classes.encoding["shards"] == (256, 256)
        assert (dataset.classes.values == expected).all()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / STORE / 'classes'}/"}}
    assert (tensorstore.open(spec).result()[100:300, 7:200].read().result() == expected[100:300, 7:200]).all()
    part = FinishedMap(tmp_path / STORE).read(Window(100, 120, 90, 150))
    assert (part == expected[100:190, 120:270]).all()
    assert report_of(tmp_path)["plan"]["inner"] == 128
    for name in (PYRAMID, SURE):
        sizes = [
            xarray.open_zarr(folder / name, group=None if name == SURE else "0").sizes for folder in (tmp_path, made)
        ]
        assert sizes[0] == sizes[1]


def test_shards_are_whole_chunks(made: Path, model: Path) -> None:
    """One of one chunk is a chunk."""

    def plan(*option: object) -> Any:
        return fcn_batch("plan", made / "a.tif", "-m", model, *option)

    for shard, next_one in ((100, 128), (129, 256), (-128, 128)):
        result = plan("--shard", shard)
        assert (result.exit_code, str(shard) in result.stderr, str(next_one) in result.stderr) == (2, True, True)
    assert plan().stdout == plan("--shard", 128).stdout
    assert "shard" not in plan().stdout
    assert "256 px" in plan("--shard", 256).stdout


def test_ground_control_points_stand_in_the_store(tmp_path: Path, model: Path) -> None:
    points = [
        GroundControlPoint(row=r, col=c, x=10 + c / 7, y=50 - r / 3, z=z)
        for r, c, z in ((0, 0, 0), (90.5, 0, 3), (0, 99.25, -2))
    ]
    write_raster(tmp_path / "a.tif", noise(3, 91, 100), gcps=points, crs="EPSG:4326")
    result = segmented(tmp_path / "a.tif", "-m", model)
    assert "3 ground control points" in result.stderr
    with xarray.open_zarr(tmp_path / STORE, decode_coords="all") as dataset:
        assert dataset.attrs["fcn:gcps"] == [[p.row, p.col, p.x, p.y, p.z] for p in points]
        assert CRS.from_wkt(dataset.attrs["fcn:gcps_crs"]) == CRS.from_epsg(4326)
        assert dataset.x.values[:2].tolist() == [0.5, 1.5]
        assert "proj:wkt2" not in dataset.classes.attrs
    with accept_pixel_space(), rasterio.open(tmp_path / "a.classes.tif") as dataset:
        found, crs = dataset.gcps
    assert np.allclose([(p.row, p.col, p.x, p.y, p.z) for p in found], [(p.row, p.col, p.x, p.y, p.z) for p in points])
    assert crs == CRS.from_epsg(4326)


def test_a_slide_says_its_scale(tmp_path: Path, model: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 91, 100))
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:  # as Aperio's scanners write it
        dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION="Aperio Image Library v11\r\n100x91|AppMag = 20|MPP = 0.5")
    segmented(path, "-m", model, "-q", "--confidence")
    for name, array in ((STORE, "classes"), (SURE, "confidence")):
        with xarray.open_zarr(tmp_path / name) as dataset:
            (image,) = dataset.attrs["ome"]["multiscales"]
        assert image["datasets"] == [
            {"path": array, "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5]}]}
        ]
        assert {axis["unit"] for axis in image["axes"]} == {"micrometer"}


# --- later, again, and over what is there ----------------------------------------------------------------------


def test_a_pyramid_is_added_to_a_complete_run(made: Path, tmp_path: Path, model: Path) -> None:
    options = [made / "a.tif", "-m", model, "-o", tmp_path, "--confidence"]
    segmented(*options)
    before = tree(tmp_path)
    result = segmented(*options, "--pyramid")
    assert "complete already" in result.stderr
    assert f"{tmp_path / PYRAMID}\n" in result.stdout
    after = tree(tmp_path)
    assert {name for name in before if after[name] != before[name]} <= {"a.stac.json", "a.run.json"}
    assert all_bytes(tmp_path) == all_bytes(made)
    same = ("outputs", "journal", "classes", "plan", "fingerprint")
    assert {name: report_of(tmp_path)[name] for name in same} == {name: report_of(made)[name] for name in same}
    assert PYRAMID in (tmp_path / "a.stac.json").read_text()
    assert fcn_batch("validate", tmp_path, "-q").exit_code == 0
    segmented(*options, "--pyramid")
    segmented(*options)
    assert tree(tmp_path) == after


@pytest.mark.parametrize(("where", "after"), [("write_pyramid", True), ("make_item", False), ("write_whole", True)])
def test_killed_while_a_pyramid_is_added_the_next_run_adds_it(
    made: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: bool
) -> None:
    options = [made / "a.tif", "-m", model, "-o", tmp_path, "--confidence"]
    segmented(*options)
    real = getattr(finish, where)

    def die(*arguments: Any, **more: Any) -> None:
        if after:
            real(*arguments, **more)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(finish, where, die)
        with pytest.raises(Killed):
            fcn_batch("segment", *options, "--pyramid")
    segmented(*options, "--pyramid")
    assert all_bytes(tmp_path) == all_bytes(made)
    assert fcn_batch("validate", tmp_path, "-q").exit_code == 0


def test_foreign_outputs_are_left_alone(made: Path, tmp_path: Path, model: Path) -> None:
    options = [made / "a.tif", "-m", model, "-o", tmp_path]
    for name in (PYRAMID, "a.classes.qml"):
        (tmp_path / name).write_text("mine")
        refused(fcn_batch("segment", *options), "output-exists", path=tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    segmented(*options)
    (tmp_path / PYRAMID).mkdir()
    (tmp_path / PYRAMID / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    before = tree(tmp_path)
    result = fcn_batch("segment", *options, "--pyramid")
    assert (result.exit_code, str(tmp_path / PYRAMID) in result.stderr) == (6, True)
    assert {n: t for n, t in tree(tmp_path).items() if n in before} == before


def test_what_an_overwriting_run_does_not_make_goes(made: Path, tmp_path: Path, model: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    refused(fcn_batch("segment", tmp_path / "a.tif", "-m", model), "output-exists")
    segmented(tmp_path / "a.tif", "-m", model, "--overwrite")
    assert names(tmp_path) == NAMES
    assert all_bytes(tmp_path).keys() == output_bytes(tmp_path, "a").keys()
    assert fcn_batch("validate", tmp_path, "-q").exit_code == 0


def tear_a_chunk(store: Path) -> None:
    os.truncate(next(p for p in sorted((store / "confidence" / "c").rglob("*")) if p.is_file()), 50)


@pytest.mark.parametrize(("damage", "earlier"), [(lambda _: None, 4), (tear_a_chunk, 3), (shutil.rmtree, 0)])
def test_confidences_that_the_disk_lost_are_made_again(
    made: Path, tmp_path: Path, model: Path, damage: Any, earlier: int
) -> None:
    real = Journal.commit

    def commit(self: Journal, receipt: Any) -> None:
        real(self, receipt)
        if len(list(self.receipts())) == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", commit)
        with pytest.raises(Killed):
            fcn_batch("segment", made / "a.tif", "-m", model, "-q", "-o", tmp_path, *ALL)
    damage(tmp_path / "a.partial" / SURE)
    assert "resuming" in segmented(made / "a.tif", "-m", model, "-o", tmp_path, *ALL).stderr
    assert all_bytes(tmp_path) == all_bytes(made)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == earlier


def test_a_pyramid_of_an_interrupted_run_is_not_published_unasked(made: Path, tmp_path: Path, model: Path) -> None:
    options = [made / "a.tif", "-m", model, "-q", "-o", tmp_path, "--confidence"]
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: Any) -> None:
            raise Killed

        patch.setattr(Journal, "seal", die)
        with pytest.raises(Killed):
            fcn_batch("segment", *options, "--pyramid")
    assert (tmp_path / "a.partial" / PYRAMID).is_dir()
    segmented(*options)
    assert names(tmp_path) == {*NAMES, SURE}
    assert fcn_batch("validate", tmp_path, "-q").exit_code == 0


# --- finding a run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "a.run.json", "a.classes.tif.aux.xml", PYRAMID])
def test_a_run_is_found_by_any_of_its_outputs(made: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run(made / name) == (Outputs(made.resolve(), "a"), json.loads((made / "a.run.json").read_text()))
    monkeypatch.chdir(made)
    assert find_outputs(Path(name)) == Outputs(made.resolve(), "a")


def test_names_may_look_like_outputs(tmp_path: Path) -> None:
    for name in ("b.classes.tif", "c.classes.tif.aux.xml", "d.pyramid.zarr"):
        (tmp_path / name).write_text("")
        (tmp_path / f"{name}.run.json").write_text('{"complete": true}')
        assert find_outputs(tmp_path / name).stem == name.split(".")[0]
        assert find_outputs(tmp_path / f"{name}.run.json").stem == name


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        (".", None, "run-ambiguous"),
        ("none.run.json", None, "run-missing"),
        ("picture.png", "", "not-an-output"),
        (".run.json", "{}", "not-an-output"),
        ("c.classes.tif", "", "report-missing"),
        ("d.run.json", "{", "report-invalid"),
        ("d.run.json", "[]", "run-incomplete"),
        ("d.run.json", '{"complete": 1}', "run-incomplete"),
    ],
)
def test_what_belongs_to_no_run_is_refused(tmp_path: Path, name: str, content: str | None, code: str) -> None:
    for stem in ("a", "b"):
        (tmp_path / f"{stem}.run.json").write_text('{"complete": true}')
    if content is not None:
        (tmp_path / name).write_text(content)
    with refuses(code):
        find_run(tmp_path / name)
