"""From raster to published map: right, the same however it is run, and whole or not there whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import xarray
from distributed import LocalCluster
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.shutil import copy
from rasterio.transform import Affine

from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.network.stream import RowStream
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.workflows import segment as segment_module
from fcn_batch.workflows.blocks.steps import run_work
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.plan import Options, Prepared, prepare
from fcn_batch.workflows.processes.execute import execute
from tests.errors import refused
from tests.exact import assert_exact
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.processors import needs_bf16
from tests.rasters import noise, write_raster
from tests.runs import (
    class_map,
    class_map_of_cog,
    fcn_batch,
    output_bytes,
    run_program,
    scene,
    segmented,
    small_block_program,
    small_blocks,
    small_segments,
    tree,
)

NAMES = (*("a.classes.zarr", "a.classes.tif", "a.classes.tif.aux.xml", "a.classes.qml"), *("a.stac.json", "a.run.json"))


class Killed(BaseException):
    """The process ends here, as far as the program can tell."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stride 32, halo 128: blocks of 128."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    torch.set_num_threads(1)  # for the oracles; a run sets its own


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A folder with a.tif (9 blocks) and the outputs of an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        segmented(scene(folder / "a.tif"), "-m", model, "-q")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def report_of(folder: Path, stem: str = "a") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / f"{stem}.run.json").read_text())
    return report


# --- right ---------------------------------------------------------------------------------------------------


def mosaic(height: int, width: int) -> NDArray[Any]:
    """Noise with a hole of zeros across several blocks, one lonely pixel, and a whole empty corner."""
    values = noise(3, height, width, seed=5)
    values[:, 100:190, 90:200] = 0
    values[:, 140, 150] = 77
    values[:, :130, 260:] = 0
    return values


@pytest.mark.parametrize(
    ("size", "tile"),
    [((300, 330), None), ((300, 330), 32), ((384, 257), 96), ((1, 1), None), ((31, 450), 64), ((129, 1), None)],
)
def test_the_map_is_that_of_one_pass_over_the_whole_image(
    tmp_path: Path, model: Path, size: tuple[int, int], tile: int | None
) -> None:
    made = assert_exact(write_raster(tmp_path / "a.tif", noise(3, *size), photometric="RGB"), model, tile=tile)
    assert made.report["blocks"] == -(-size[0] // 128) * -(-size[1] // 128)
    assert size[0] < 200 or len(np.unique(made.classes)) == 6


def test_nan_and_infinity_are_no_data(tmp_path: Path, model: Path) -> None:
    values = noise(3, 200, 260, "float32")
    values[0, 20:90, 30:150], values[1, 150:, :40], values[2, 100, 200] = np.nan, np.inf, -np.inf
    made = assert_exact(write_raster(tmp_path / "a.tif", values, photometric="RGB"), model, full_scale=255)
    assert made.report["nodata_pixels"] == 70 * 120 + 50 * 40 + 1


def test_a_model_with_another_grid(tmp_path: Path) -> None:
    """Stride 8, halo 40."""
    model = save_tiny_model(tmp_path / "fine.safetensors", input_upsampling=4)
    path = write_raster(tmp_path / "a.tif", noise(3, 130, 150), photometric="RGB")
    assert_exact(path, model, output=tmp_path / "streamed")
    assert assert_exact(path, model, tile=40).report["plan"]["cut"] == {
        "way": "tiles", "chunk": 128, "lane": 128, "segment": 256, "tile": 40, "overlap": 40, "stride": 8,
        "blend": None,
    }  # fmt: skip


BLENDS = [(None, None, None), (64, 0, "hann"), (128, 64, "hann"), (96, 32, "hann")]
BLENDS += [(128, 64, "linear"), (96, 32, "gaussian"), (64, 32, "none")]


@pytest.mark.parametrize(("tile", "overlap", "blend"), BLENDS)
def test_pixels_without_data_are_masked_and_count_as_the_mean(
    tmp_path: Path, model: Path, tile: int | None, overlap: int | None, blend: str | None
) -> None:
    """Blended maps are weighted means of tiles, and say so."""
    path = write_raster(tmp_path / "a.tif", mosaic(300, 330), nodata=0, photometric="RGB")
    made = assert_exact(path, model, tile=tile, overlap=overlap, blend=blend)
    assert made.report["nodata_pixels"] == (~made.valid).sum() > 9900
    assert sum(entry["share"] for entry in made.report["classes"]) == pytest.approx(1), "of what has a class"
    exactness = "windows" if blend else "exact"
    assert made.report["exactness"] == exactness
    assert ("windows: " in made.stderr) == (blend is not None)
    assert any(note.startswith("windows") for note in made.report["notes"]) == (blend is not None)
    with xarray.open_zarr(tmp_path / "a.classes.zarr") as dataset:
        told = [dataset.attrs.get(f"fcn:{name}") for name in ("exactness", "blend", "tile", "overlap")]
    assert told[0] == exactness
    assert told[1:] == [blend, tile, overlap] or not blend


@pytest.mark.parametrize("blend", ["hann", "gaussian"])
def test_blended_maps_do_not_depend_on_the_blocks(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, blend: str
) -> None:
    path = scene(tmp_path / "a.tif")
    made = {}
    for chunk in (32, 256):
        small_blocks(monkeypatch, chunk)
        folder = tmp_path / str(chunk)
        segmented(path, "-m", model, "-o", folder, "--tile", 96, "--overlap", 32, "--blend", blend)
        made[chunk] = class_map(folder, "a").tobytes()
        assert made[chunk] == class_map_of_cog(folder, "a").tobytes()
    assert made[32] == made[256]


# --- the same bytes ------------------------------------------------------------------------------------------


def test_an_earlier_run_settles_the_threads(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide the last bits, so a run goes on with those it began with, whatever the workers are now."""
    path, other = scene(tmp_path / "a.tif"), 2
    segmented(path, "-m", model, "--threads", other)
    before = tree(tmp_path)
    segmented(path, "-m", model)
    assert tree(tmp_path) == before
    assert report_of(tmp_path)["plan"]["kernel"]["threads"] == other
    assert fcn_batch("segment", path, "-m", model, "--threads", other + 1).exit_code == 6
    interrupted(monkeypatch, 4, path, "-m", model, "-o", tmp_path / "b")
    plan = Journal(tmp_path / "b" / "a.partial").plan()
    stored = plan.model_copy(update={"kernel": plan.kernel.model_copy(update={"threads": other})})
    (tmp_path / "b" / "a.partial" / "plan.json").write_text(stored.model_dump_json())
    segmented(path, "-m", model, "-o", tmp_path / "b")
    assert report_of(tmp_path / "b")["plan"]["kernel"]["threads"] == other


def test_parts_in_any_order_make_the_same_bytes(tmp_path: Path, model: Path, reference: Path) -> None:
    command = [reference / "a.tif", "-m", model, "-o", tmp_path, "--part"]
    for part in ("3/3", "1/3", "1/3"):
        assert segmented(*command, part).stdout == ""
        assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    assert len(segmented(*command, "2/3").stdout.splitlines()) == 3
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    for option in ("--restart", "--overwrite"):
        refused(fcn_batch("segment", *command, "1/3", option), "option-conflict", one="--part 1/3", other=option)


def test_who_begins_at_the_same_moment_goes_on_with_the_plan_of_who_was_first(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, command = segment_module._settled, [reference / "a.tif", "-m", model, "-o", tmp_path]

    def too_early(*given: Any) -> Any:
        monkeypatch.setattr(segment_module, "_settled", settled)
        segmented(*command, "--threads", 2, "--part", "1/3")
        return given[0]

    monkeypatch.setattr(segment_module, "_settled", too_early)
    segmented(*command)
    assert report_of(tmp_path)["plan"]["kernel"]["threads"] == 2


def test_a_cluster_started_by_others_makes_the_same_bytes(tmp_path: Path, model: Path, reference: Path) -> None:
    options = {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": 40}
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
        for job in ("first", "next"):  # the workers stay
            command = [reference / "a.tif", "-m", model, "-o", tmp_path / job]
            segmented(*command, "--scheduler", cluster.scheduler_address)
            assert output_bytes(tmp_path / job, "a") == output_bytes(reference, "a")


def with_the_plan_of(processes: int, patch: pytest.MonkeyPatch) -> None:
    """Plans are made for so many processes, wherever they then run."""

    def prepared(path: Path, options: Any, **_: Any) -> Prepared:
        return prepare(path, options, processes=processes)

    small_segments(patch)
    patch.setattr(segment_module, "prepare", prepared)


def test_one_plan_makes_the_same_bytes_on_any_number_of_workers(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_the_plan_of(4, monkeypatch)
    values = noise(3, 600, 300)
    values[:, 200:500, :180] = 0
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    path, made = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB", **blocks), {}
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        cut = assert_exact(path, model, output=folder, workers=workers).report["plan"]["cut"]
        made[workers] = output_bytes(folder, "a")
        assert (cut["way"], cut["lane"], cut["segment"]) == ("stream", 128, 256), "three lanes of three segments"
    assert made[0] == made[2]

    def shuffled(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        assert len(works) == 9
        for index in np.random.default_rng(2).permutation(9):
            execute(ticket, [works[index]], *rest)

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "execute", shuffled)
        segmented(path, "-m", model, "-o", tmp_path / "shuffled")
    assert output_bytes(tmp_path / "shuffled", "a") == made[0]


def test_segments_are_begun_from_top_to_bottom(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Work] = []

    def noted(ticket: Any, work: Work, on_receipt: Any, stop: Any) -> None:
        begun.append(work)
        run_work(ticket, work, on_receipt, stop)

    with_the_plan_of(4, monkeypatch)
    monkeypatch.setattr("fcn_batch.workflows.processes.execute.run_work", noted)
    segmented(scene(tmp_path / "a.tif", 500, 500), "-m", model)
    assert report_of(tmp_path)["plan"]["cut"]["segment"] == 256
    assert begun == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)]


# --- stretches without data ----------------------------------------------------------------------------------

STRETCHES: dict[str, list[tuple[slice, slice]]] = {
    "of one lane": [(slice(130, 1100), slice(0, 260))],
    "several": [(slice(40, 700), slice(None)), (slice(704, 1200), slice(None))],
    "one row of data": [(slice(0, 655), slice(None)), (slice(656, None), slice(None))],
    "hardly long enough": [(slice(300, 620), slice(None))],
    "stairs": [(slice(100 + 60 * k, 700 + 60 * k), slice(32 * k, 32 * k + 32)) for k in range(9)],
    "all but a pixel": [(slice(0, 1299), slice(None)), (slice(1299, None), slice(1, None))],
}


@pytest.mark.parametrize("stretches", STRETCHES)
def test_long_stretches_without_data_change_nothing_else(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, stretches: str
) -> None:
    values = noise(3, 1300, 270)
    for rows, cols in STRETCHES[stretches]:
        values[:, rows, cols] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
    done = assert_exact(path, model).report["forward_passes_per_pixel"]
    full = fcn_batch("plan", path, "-m", model).stdout
    share = float(re.findall(r"cost +([\d.]+) forward", full)[0])
    assert done < share - 0.1 if stretches not in ("hardly long enough", "stairs") else done <= share + 0.005

    def one_by_one(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        for block in (block for work in works for block in reversed(work)):
            execute(ticket, [(block,)], *rest)

    monkeypatch.setattr(segment_module, "execute", one_by_one)
    segmented(path, "-m", model, "-o", tmp_path / "blocks")
    assert output_bytes(tmp_path / "blocks", "a") == output_bytes(tmp_path, "a")


# --- precision and memory ------------------------------------------------------------------------------------


@needs_bf16
def test_bfloat16_is_asked_for_and_told(tmp_path: Path, model: Path, reference: Path) -> None:
    for options in ([], ["--tile", "96", "--overlap", "32"]):
        folder, full = tmp_path / f"{len(options)}-bf16", tmp_path / f"{len(options)}-fp32"
        segmented(reference / "a.tif", "-m", model, "-o", folder, "--precision", "bf16", *options)
        segmented(reference / "a.tif", "-m", model, "-o", full, "--precision", "fp32", *options)
        report = report_of(folder)
        assert report["precision"] == report["plan"]["kernel"]["precision"] == "bf16"
        assert report_of(full)["precision"] == "fp32"
        with xarray.open_zarr(folder / "a.classes.zarr") as dataset:
            assert dataset.attrs["fcn:precision"] == "bf16"
        with rasterio.open(folder / "a.classes.tif") as dataset:
            assert "bf16" in dataset.tags().values()
        half, exact = class_map(folder, "a"), class_map(full, "a")
        assert 0.9 < (half == exact).mean() < 1
    result = fcn_batch("segment", reference / "a.tif", "-m", model, "-o", tmp_path / "h", "--precision", "fp16")
    assert result.exit_code == 2
    assert not (tmp_path / "h").exists()


def test_less_memory_means_narrower_lanes_and_the_same_map(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._LANE", 2**18)
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._LOADING", 0)
    path = write_raster(tmp_path / "a.tif", mosaic(300, 900), nodata=0, photometric="RGB")
    assert assert_exact(path, model, output=tmp_path / "wide").report["plan"]["cut"]["lane"] == 1024
    needed = prepare(path, Options(model=str(model))).memory
    narrow = assert_exact(path, model, output=tmp_path / "narrow", memory=int(0.8 * needed))
    assert narrow.report["plan"]["cut"]["lane"] < 1024
    # without the option, what the earlier run chose is kept; with another one it is another plan
    before = tree(tmp_path / "narrow")
    segmented(path, "-m", model, "-o", tmp_path / "narrow")
    assert tree(tmp_path / "narrow") == before
    other = fcn_batch("segment", path, "-m", model, "-o", tmp_path / "narrow", "--memory", 2 * needed)
    assert other.exit_code == 6


def short_of_memory(patch: pytest.MonkeyPatch, most: int, *, after: int = 0) -> list[int]:
    """From the `after`-th strip on, torch cannot allocate what strips of more than `most` rows need."""
    push, seen = RowStream.push, []

    def limited(self: RowStream, strip: torch.Tensor, *, last: bool = False) -> torch.Tensor | None:
        seen.append(strip.shape[2])
        if len(seen) > after and strip.shape[2] > most:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {2**40} bytes.")
        return push(self, strip, last=last)

    patch.setattr(RowStream, "push", limited)
    return seen


@pytest.mark.parametrize(("most", "after", "lowest"), [(128, 0, 64), (64, 3, 64), (32, 7, 32)])
def test_when_memory_runs_out_strips_are_halved(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, most: int, after: int, lowest: int
) -> None:
    """On the network's grid."""
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._STRIP_PIXELS", {"cpu": 2**16})
    path = write_raster(tmp_path / "a.tif", mosaic(1000, 330), nodata=0, photometric="RGB")
    seen = short_of_memory(monkeypatch, most, after=after)
    report = assert_exact(path, model).report
    assert report["plan"]["cut"]["tile"] == 160
    assert min(seen) == lowest
    assert f" {lowest} instead of 160" in report["notes"][-1]


def test_when_memory_has_run_out_the_run_can_be_taken_up(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "a.tif", 700, 200)
    with monkeypatch.context() as patch:
        short_of_memory(patch, 0, after=10)
        assert fcn_batch("segment", path, "-m", model).exit_code == 2
        tiles = fcn_batch("segment", path, "-m", model, "-o", tmp_path / "tiles", "--tile", 64)
        assert (tiles.exit_code, "--tile 32" in tiles.stderr) == (2, True)
    assert len(list((tmp_path / "a.partial" / "receipts").glob("*.json"))) >= 1
    segmented(path, "-m", model)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] >= 1
    segmented(path, "-m", model, "-o", tmp_path / "fresh")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "fresh", "a")


# --- what is made --------------------------------------------------------------------------------------------


def test_stdout_is_the_paths_and_a_complete_run_again_does_nothing(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the outputs lie beside the input."""
    for folder, words in ((tmp_path / "in", []), (tmp_path / "new" / "folder", ["-o", tmp_path / "new" / "folder"])):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy2(reference / "a.tif", tmp_path / "in")
        monkeypatch.chdir(tmp_path)
        result = segmented("in/a.tif", "-m", model, *words)
        ends = ("classes.zarr", "classes.tif", "run.json")
        assert result.stdout == "".join(f"{folder / f'a.{end}'}\n" for end in ends)
        assert sorted(p.name for p in folder.iterdir() if p.name != "a.tif") == sorted(NAMES)
        before = tree(tmp_path)
        again = segmented("in/a.tif", "-m", model, *words)
        assert ("a.tif: " in again.stderr, again.stdout, tree(tmp_path)) == (True, result.stdout, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "new"]


def test_zarr_geotiff_and_report_say_the_same(reference: Path, model: Path) -> None:
    report, classes = report_of(reference), class_map(reference, "a")
    assert (class_map_of_cog(reference, "a") == classes).all()
    with xarray.open_zarr(reference / "a.classes.zarr") as dataset:
        assert (dataset.classes.values == classes).all()
        assert dataset.attrs["fcn:fingerprint"] == report["fingerprint"]
        assert dataset.attrs["fcn:exactness"] == "exact"
    assert "class 5" in (reference / "a.classes.tif.aux.xml").read_text()
    told = [report[name] for name in ("complete", "exactness", "notes", "outputs", "blocks", "nodata_pixels")]
    assert told == [True, "exact", [], list(NAMES[:-1]), 9, 0]
    assert [c["name"] for c in report["classes"]] == [f"class {k}" for k in range(6)]
    assert [c["pixels"] for c in report["classes"]] == [int((classes == 10 * k).sum()) for k in range(6)]
    assert sum(c["share"] for c in report["classes"]) == pytest.approx(1)
    assert report["plan"]["model"]["path"] == str(model)
    assert report["plan"]["input"]["path"] == str(reference / "a.tif")
    assert report["timing"]["blocks_done_by_earlier_runs"] == 0


def test_areas_are_those_on_the_ellipsoid(reference: Path) -> None:
    classes, geod = class_map(reference, "a"), Geod(ellps="WGS84")
    rows = []
    for row in range(classes.shape[0]):
        north, south = 40 - row / 16, 40 - (row + 1) / 16
        area, _ = geod.polygon_area_perimeter([0, 1 / 16, 1 / 16, 0], [south, south, north, north])
        rows.append(area / 1e6)
    for entry in report_of(reference)["classes"]:
        expected = float(((classes == entry["id"]).sum(axis=1) * rows).sum())
        assert entry["area_km2"] == pytest.approx(expected, rel=1e-5)


def test_areas_of_a_projected_raster_and_of_one_that_lies_nowhere(tmp_path: Path, model: Path) -> None:
    scene(tmp_path / "a.tif", 150, 160, crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    scene(tmp_path / "b.tif", 150, 160, crs=None, transform=Affine.identity())
    result = segmented(tmp_path / "a.tif", tmp_path / "b.tif", "-m", model)
    for entry in report_of(tmp_path)["classes"]:  # UTM's scale is 0.9996 here
        assert entry["area_km2"] == pytest.approx(entry["pixels"] * 1e-4 / 0.9996**2, rel=1e-3)
    assert all(c["area_km2"] is None for c in report_of(tmp_path, "b")["classes"])
    assert [f"{name}.tif: " in result.stderr for name in "ab"] == [True, True]


# --- again, and over what is there ---------------------------------------------------------------------------


def test_foreign_outputs_are_left_alone_unless_overwritten(tmp_path: Path, model: Path, reference: Path) -> None:
    """Also those that lie behind a link."""
    out, target = tmp_path / "out", tmp_path / "elsewhere"
    command = ["segment", reference / "a.tif", "-m", model, "-o", out]
    segmented(*command[1:])
    (out / "a.classes.tif").unlink()
    assert fcn_batch(*command).exit_code == 6, "an output is gone"

    def foreign(*names: str) -> None:
        shutil.rmtree(out)
        out.mkdir()
        for name in names:
            (out / name).mkdir() if name.endswith(".zarr") else (out / name).write_text("{}")

    for name in NAMES:
        foreign(name)
        before = tree(out)
        result = fcn_batch(*command)
        assert (result.exit_code, str(out / name) in result.stderr, tree(out)) == (6, True, before)
    foreign(*NAMES)
    segmented(*command[1:], "--overwrite")
    assert output_bytes(out, "a") == output_bytes(reference, "a")
    assert sorted(p.name for p in out.iterdir()) == sorted(NAMES)
    foreign()
    target.mkdir()
    (target / "keep").write_text("me")
    (out / "a.classes.zarr").symlink_to(target)
    segmented(*command[1:], "--overwrite")
    assert output_bytes(out, "a") == output_bytes(reference, "a")
    assert (target / "keep").read_text() == "me"


def test_a_run_that_fails_leaves_the_old_outputs_whole(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    old, kept = output_bytes(tmp_path, "a"), (tmp_path / "a.run.json").read_bytes()
    options = [tmp_path / "a.tif", "-m", model, "--tile", "96", "--overlap", "32"]
    with monkeypatch.context() as patch:
        patch.setattr(ClassStore, "write", full_after(3))
        result = fcn_batch("segment", *options, "--overwrite")
    assert result.exit_code == 6
    assert output_bytes(tmp_path, "a") == old
    assert (tmp_path / "a.run.json").read_bytes() == kept
    segmented(*options, "--overwrite")
    assert report_of(tmp_path)["exactness"] == "windows"
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] >= 2


def full_after(blocks: int) -> Callable[..., None]:
    """A ClassStore.write with room for so many blocks."""
    write, done = ClassStore.write, []

    def limited(self: ClassStore, *arguments: Any) -> None:
        done.append(1)
        if len(done) > blocks:
            raise OSError(28, "No space left on device", str(self.path))
        write(self, *arguments)

    return limited


# --- interrupted ---------------------------------------------------------------------------------------------


def stop_after(blocks: int) -> Callable[..., None]:
    """An `execute` that is killed when so many blocks are done; perhaps in the middle of a segment."""

    def some(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        left = blocks
        for work in works:
            if left > 0:
                execute(ticket, [work[:left]], *rest)
                left -= len(work)
        raise Killed

    return some


def interrupted(patch: pytest.MonkeyPatch, blocks: int, *words: object) -> None:
    """Leave a run of `segment` with these words that got so far."""
    with patch.context() as inner:
        inner.setattr(segment_module, "execute", stop_after(blocks))
        with pytest.raises(Killed):
            fcn_batch("segment", *words)


def test_kill_9_of_a_run_with_workers_and_the_same_command_again(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 3000, 330)  # three lanes of two segments: not over before it is killed
    command = [*small_block_program(tmp_path, halos=1), "segment", path, "-m", model, "-o", tmp_path / "out"]
    done = tmp_path / "out" / "a.partial" / "receipts"
    words = [str(part) for part in (*command, "--workers", 2)]
    victim = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(list(done.glob("*.json"))) < 6:
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.partial"]
    finished = {name: state for name, state in tree(done).items() if name.endswith(".json")}
    assert 6 <= len(finished) < 72
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        publish = Outputs.publish
        patch.setattr(Outputs, "publish", lambda self: (seen.update(tree(done)), publish(self))[1])
        segmented(path, "-m", model, "-o", tmp_path / "out")
    assert {name: seen[name] for name in finished} == finished
    report = report_of(tmp_path / "out")
    assert report["timing"]["blocks_done_by_earlier_runs"] == len(finished)
    assert report["plan"]["cut"]["segment"] == 1536, "settled by the run that was killed"
    with pytest.MonkeyPatch.context() as patch:
        with_the_plan_of(2, patch)
        segmented(path, "-m", model, "-o", tmp_path / "fresh", "--threads", report["plan"]["kernel"]["threads"])
    assert report_of(tmp_path / "fresh")["plan"] == report["plan"]
    assert output_bytes(tmp_path / "out", "a") == output_bytes(tmp_path / "fresh", "a")


BLENDED = ["--tile", "96", "--overlap", "32"]


@pytest.mark.parametrize(
    ("blocks", "options"), [(1, []), (5, []), (10, []), (7, ["--tile", "64"]), (2, BLENDED), (14, BLENDED)]
)
def test_resuming_inside_a_segment_makes_the_same_bytes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, options: list[str]
) -> None:
    command = [scene(tmp_path / "a.tif", 1000, 200), "-m", model, *options]  # two lanes of eight blocks
    interrupted(monkeypatch, blocks, *command)
    segmented(*command)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == blocks
    segmented(*command, "-o", tmp_path / "undisturbed")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "undisturbed", "a")


def test_workers_change_the_segments_but_a_resumed_run_keeps_its_own(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_segments(monkeypatch)
    path = scene(tmp_path / "a.tif", 700, 200)
    for begun, taken_up, segment in (("0", "2", 768), ("2", "0", 384)):
        folder = tmp_path / begun
        command = [path, "-m", model, "-o", folder, "--threads", 1, "--workers"]
        interrupted(monkeypatch, 3, *command, begun)
        assert Journal(folder / "a.partial").plan().cut.segment == segment
        segmented(*command, taken_up)
        assert report_of(folder)["plan"]["cut"]["segment"] == segment
        assert report_of(folder)["timing"]["blocks_done_by_earlier_runs"] == 3
        before = tree(folder)
        segmented(*command, taken_up)
        assert tree(folder) == before


def die(*_arguments: Any, **_options: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    "where",
    [
        "workflows.outputs.publishing.Outputs.make_folder",
        "pipeline.core.journal.write_whole",
        "pipeline.core.journal.Journal.begin",
        "workflows.run.create_store",
        "pipeline.store.classstore._write_coordinates",
        "pipeline.core.journal.Journal.receipt",
        "workflows.segment.execute",
        "pipeline.store.classstore.consolidate",
        "workflows.outputs.stitch.write_cog",
        "workflows.outputs.stitch.write_whole",
        "workflows.outputs.finish.write_whole",
        "pipeline.core.sidefile._write",
        "pipeline.core.journal.Journal.seal",
        "pipeline.core.journal.shutil.rmtree",
    ],
)
def test_killed_at_any_step_the_run_is_completed_by_the_next(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, _, name = where.rpartition(".")
    target = resolve_name(f"fcn_batch.{owner}")
    options = [reference / "a.tif", "-m", model, "-o", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, die)
        with pytest.raises(Killed):
            fcn_batch("segment", *options)
    assert not (tmp_path / "a.run.json").exists() or all((tmp_path / name).exists() for name in NAMES)
    segmented(*options)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (BLENDED, ["cut.blend: None, now hann", "--restart"]),
        (["--bands", "3,2,1"], ["bands: [1, 2, 3], now [3, 2, 1]", "--restart"]),
    ],
)
def test_other_settings_are_refused_until_restart(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: list[str]
) -> None:
    command = [reference / "a.tif", "-m", model]
    interrupted(monkeypatch, 4, *command, "-o", tmp_path)
    before = tree(tmp_path)
    result = fcn_batch("segment", *command, "-o", tmp_path, *options)
    assert result.exit_code == 7
    assert [words in result.stderr for words in told] == [True] * len(told)
    assert tree(tmp_path) == before
    segmented(*command, "-o", tmp_path, *options, "--restart")
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == 0
    segmented(*command, *options, "-o", tmp_path / "fresh")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "fresh", "a")


def test_a_changed_input_is_refused_until_restart(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "a.tif")
    interrupted(monkeypatch, 4, path, "-m", model, "-o", tmp_path)
    os.utime(path, ns=(1, 1))
    error = refused(fcn_batch("segment", path, "-m", model), "run-differs", path=tmp_path / "a.partial")
    assert error.fields["differences"].startswith("input.files.0.modified_ns: ")
    segmented(path, "-m", model, "--restart")


def test_a_moved_run_goes_on(tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another mount point, say: the model and the input too have other paths."""
    (tmp_path / "old").mkdir()
    path, weights = tmp_path / "old" / "a.tif", tmp_path / "old" / "m.safetensors"
    shutil.copy2(reference / "a.tif", path)
    shutil.copy2(model, weights)
    interrupted(monkeypatch, 4, path, "-m", weights)
    path.parent.rename(tmp_path / "new")
    segmented(tmp_path / "new" / "a.tif", "-m", tmp_path / "new" / "m.safetensors")
    assert output_bytes(tmp_path / "new", "a") == output_bytes(reference, "a")
    assert report_of(tmp_path / "new")["timing"]["blocks_done_by_earlier_runs"] == 4


def test_an_unreadable_plan_keeps_the_blocks_that_are_its_own(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 4, reference / "a.tif", "-m", model, "-o", tmp_path)
    (tmp_path / "a.partial" / "plan.json").write_text("{")
    command = [reference / "a.tif", "-m", model, "-o", tmp_path]
    refused(fcn_batch("segment", *command, "--bands", "3,2,1"), "plan-unreadable")
    assert "plan.json" in segmented(*command).stderr
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == 4
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


@pytest.mark.parametrize(("loss", "earlier"), [("flipped bit", 8), ("lost row of chunks", 6)])
def test_blocks_that_the_disk_lost_are_done_again(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, loss: str, earlier: int
) -> None:
    command = [reference / "a.tif", "-m", model, "-o", tmp_path]
    interrupted(monkeypatch, 9, *command)
    chunks = tmp_path / "a.partial" / "a.classes.zarr" / "classes" / "c"
    if loss == "lost row of chunks":
        shutil.rmtree(chunks / "1")  # of blocks 3, 4 and 5
    else:
        data = bytearray((chunks / "0" / "0").read_bytes())
        data[len(data) // 2] ^= 1
        (chunks / "0" / "0").write_bytes(data)
    segmented(*command)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == earlier
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


def test_an_input_of_which_a_part_changed_is_not_complete(tmp_path: Path, model: Path) -> None:
    """The source of a VRT; the mask beside a raster."""
    path, vrt = scene(tmp_path / "b.tif", 60, 70), tmp_path / "a.vrt"
    copy(path, vrt, driver="VRT")
    for name in (vrt, path):
        segmented(name, "-m", model)
        before = tree(tmp_path)
        segmented(name, "-m", model)
        assert tree(tmp_path) == before
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.zeros((60, 70), np.uint8))
    os.utime(path, ns=(path.stat().st_atime_ns, before["b.tif"][1]))
    assert (tmp_path / "b.tif.msk").exists()
    assert fcn_batch("segment", path, "-m", model).exit_code == 6
    (tmp_path / "b.tif.msk").unlink()
    os.utime(path, ns=(1, 1))
    assert fcn_batch("segment", vrt, "-m", model).exit_code == 6


def test_names_that_would_be_written_twice_are_refused_before_anything_is_done(tmp_path: Path, model: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        scene(tmp_path / name / "a.tif", 40, 50)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    scene(tmp_path / "one" / "a.classes.tif", 40, 50)
    other = scene(tmp_path / "one" / "b.tif", 40, 50).rename(tmp_path / "one" / "a.jpg")
    first, second = tmp_path / "one" / "a.tif", tmp_path / "two" / "a.tif"
    before = tree(tmp_path)
    for words in (
        (first, second, "-o", tmp_path / "out"),
        (first, tmp_path / "link" / other.name),
        (first, tmp_path / "one" / "a.classes.tif", "--overwrite"),
    ):
        result = fcn_batch("segment", *words, "-m", model)
        assert (result.exit_code, result.stdout) == (2, "")
        assert tree(tmp_path) == before
    result = segmented(first, second, "-m", model, "--overwrite")  # each beside its own input
    assert len(result.stdout.splitlines()) == 6


def test_processes_started_at_once_make_one_map(tmp_path: Path, model: Path, reference: Path) -> None:
    command = [*small_block_program(tmp_path), "segment", reference / "a.tif", "-m", model, "-o", tmp_path / "out"]
    words = [str(word) for word in (*command, "--threads", 1)]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=PATIENCE_S)[1] for process in both]
    codes = [process.returncode for process in both]
    assert codes == [0, 0], told
    assert output_bytes(tmp_path / "out", "a") == output_bytes(reference, "a")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == sorted(NAMES)


def test_names_that_cannot_be_used_are_refused(tmp_path: Path, model: Path) -> None:
    """A staging folder that is a file or a link; what is too long, and what is no text."""
    path, staging = scene(tmp_path / "a.tif", 60, 70), tmp_path / "a.partial"
    (tmp_path / "elsewhere").mkdir()
    for make in (lambda: staging.write_text("mine"), lambda: staging.symlink_to(tmp_path / "elsewhere")):
        make()
        before = tree(tmp_path)
        for options in ([], ["--restart"]):
            result = fcn_batch("segment", path, "-m", model, *options)
            assert (result.exit_code, str(staging) in result.stderr, tree(tmp_path)) == (6, True, before)
        staging.unlink()
    long = path.rename(tmp_path / f"{'x' * 220}.tif")
    assert fcn_batch("segment", long, "-m", model).exit_code == 2
    odd = long.rename(tmp_path / os.fsdecode(b"bad\xff.tif"))
    program = run_program([Path(sys.executable).with_name("fcn-batch"), "segment", odd, "-m", model])
    assert program.returncode == 4
