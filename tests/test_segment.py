"""From raster to published map: right, the same however it is run, and whole or not there whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
from torch.nn import functional

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.stream import RowStream
from fcn_batch.pipeline.network.upsample import Upsample
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.workflows import segment as segment_module
from fcn_batch.workflows.blocks.steps import run_work
from fcn_batch.workflows.console.progress import Lines
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.plan import Options, Prepared, prepare
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.workers import Workers
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

TIE = 1e-4
"""Scores closer than this (they are about 1 in size) may be ordered otherwise in another order of summing."""
NAMES = (
    *("a.classes.zarr", "a.classes.tif", "a.classes.tif.aux.xml", "a.classes.qml"),
    *("a.stac.json", "a.run.json"),
)


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


def normalised(values: NDArray[Any], valid: NDArray[np.bool_], full_scale: float) -> NDArray[np.float32]:
    """As the tiny model's card says: the same mean and deviation in all bands."""
    with np.errstate(invalid="ignore"):
        image = (values.astype(np.float64) / full_scale - 0.392) / 0.225
    return np.where(valid, image, 0).astype(np.float32)


@cache
def network_of(model: Path) -> Fcn:
    network = load_model(model)[1]
    assert isinstance(network, Fcn)
    return network


def scores_of(model: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """One pass over all of an image."""
    network = network_of(model)
    rows, cols = image.shape[1:]
    padded = functional.pad(torch.from_numpy(image), (0, -cols % network.stride, 0, -rows % network.stride))
    with torch.inference_mode():
        out: NDArray[np.float32] = network(padded[None])[0, :, :rows, :cols].numpy()
    return out


def assert_best(classes: NDArray[np.uint8], scores: NDArray[Any], valid: NDArray[np.bool_], *, step: int = 10) -> None:
    """The map has the best class of each valid pixel, but where two are as good; and no data elsewhere."""
    assert (classes[~valid] == NODATA).all()
    assert (classes[valid] % step == 0).all()
    assert (classes[valid] != NODATA).all()
    chosen = np.take_along_axis(scores, np.where(valid, classes // step, 0)[None].astype(np.int64), axis=0)[0]
    lost = scores.max(axis=0) - chosen
    assert lost[valid].max(initial=0) < TIE
    assert (lost[valid] > 0).mean() < 1e-3 if valid.any() else True


def mosaic(dtype: str, height: int, width: int) -> NDArray[Any]:
    """Noise with a hole of zeros across several blocks, one lonely pixel, and a whole empty corner."""
    values = noise(3, height, width, dtype, seed=5)
    values[:, 100:190, 90:200] = 0
    values[:, 140, 150] = 77
    values[:, :130, 260:] = 0
    return values


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((300, 330), []),
        ((300, 330), ["--tile", "32"]),
        ((384, 257), ["--tile", "96"]),
        ((1, 1), []),
        ((31, 450), ["--tile", "64"]),
        ((129, 1), []),
    ],
)
def test_the_map_is_that_of_one_pass_over_the_whole_image(
    tmp_path: Path, model: Path, size: tuple[int, int], options: list[str]
) -> None:
    values = noise(3, *size)
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    segmented(path, "-m", model, *options)
    everywhere = np.ones(size, np.bool_)
    classes = class_map(tmp_path, "a")
    assert_best(classes, scores_of(model, normalised(values, everywhere, 255)), everywhere)
    assert report_of(tmp_path)["blocks"] == -(-size[0] // 128) * -(-size[1] // 128)
    assert size[0] < 200 or len(np.unique(classes)) == 6


@pytest.mark.parametrize("blending", [[], ["--tile", "96", "--overlap", "32"]])
def test_pixels_without_data_are_masked_and_count_as_the_mean(tmp_path: Path, model: Path, blending: list[str]) -> None:
    values = mosaic("uint8", 300, 330)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
    segmented(path, "-m", model, *blending)
    valid = (values != 0).any(axis=0)
    scores = scores_of(model, normalised(values, valid, 255))
    classes = class_map(tmp_path, "a")
    assert ((classes == NODATA) == ~valid).all()
    if not blending:
        assert_best(classes, scores, valid)
    report = report_of(tmp_path)
    assert report["nodata_pixels"] == (~valid).sum()
    assert sum(entry["share"] for entry in report["classes"]) == pytest.approx(1), "of what has a class"


def test_nan_and_infinity_are_no_data(tmp_path: Path, model: Path) -> None:
    values = noise(3, 200, 260, "float32")
    values[0, 20:90, 30:150] = np.nan
    values[1, 150:, :40] = np.inf
    values[2, 100, 200] = -np.inf
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    segmented(path, "-m", model, "--full-scale", "255")
    valid = np.isfinite(values).all(axis=0)
    assert_best(class_map(tmp_path, "a"), scores_of(model, normalised(values, valid, 255)), valid)


def test_a_model_with_another_grid(tmp_path: Path) -> None:
    """Stride 8, halo 40."""
    model = save_tiny_model(tmp_path / "fine.safetensors", input_upsampling=4)
    values = noise(3, 130, 150)
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    everywhere = np.ones((130, 150), np.bool_)
    segmented(path, "-m", model, "-o", tmp_path / "streamed")
    streamed = class_map(tmp_path / "streamed", "a")
    assert_best(streamed, scores_of(model, normalised(values, everywhere, 255)), everywhere)
    segmented(path, "-m", model, "--tile", "40")
    assert report_of(tmp_path)["plan"]["cut"] == {
        "way": "tiles", "chunk": 128, "lane": 128, "segment": 256, "tile": 40, "overlap": 40, "stride": 8,
        "blend": None,
    }  # fmt: skip
    assert_best(class_map(tmp_path, "a"), scores_of(model, normalised(values, everywhere, 255)), everywhere)


def window_of(blend: str, tile: int, overlap: int, *, first: bool, last: bool) -> NDArray[np.float64]:
    """Unnormalised weights of a tile along one axis."""
    place = np.arange(tile) + 0.5
    if blend == "gaussian":
        return np.asarray(np.exp(-((place - tile / 2) ** 2) / (2 * (tile / 8) ** 2)))
    rise = np.ones(tile) if first or not overlap else np.clip(place / overlap, 0, 1)
    fall = np.ones(tile) if last or not overlap else np.clip((tile - place) / overlap, 0, 1)
    weights: NDArray[np.float64] = rise * fall
    if blend == "hann":
        weights = np.sin(weights * np.pi / 2) ** 2
    return (weights > 0.5).astype(np.float64) if blend == "none" else weights


@cache
def coarse_network_of(model: Path) -> tuple[Fcn, int]:
    """A network without its last upsampling, and the factor of that."""
    network = load_model(model)[1]
    assert isinstance(network, Fcn)
    factor = network.stride * network.up_final(torch.zeros(1, 6, 1, 1)).shape[2] // 32
    network.up_final = Upsample(1)
    return network, factor


def blended(model: Path, image: NDArray[np.float32], tile: int, overlap: int, blend: str) -> NDArray[np.float64]:
    """Weighted mean of the scores of all tiles that hold a cell, over the whole raster at once, then upsampled."""
    network, side = coarse_network_of(model)
    _, height, width = image.shape
    down, across = -(-height // side), -(-width // side)
    sums, total = np.zeros((6, down, across)), np.zeros((down, across))
    tile, overlap = tile // side, overlap // side
    rows, cols = (range(0, max(length - overlap, 1), tile - overlap) for length in (down, across))
    for row in rows:
        for col in cols:
            seen = torch.from_numpy(image[:, row * side : (row + tile) * side, col * side : (col + tile) * side])
            padded = functional.pad(seen, (0, -seen.shape[2] % 32, 0, -seen.shape[1] % 32))
            part = (slice(row, row + tile), slice(col, col + tile))
            weights = np.outer(
                window_of(blend, tile, overlap, first=row == 0, last=row == rows[-1]),
                window_of(blend, tile, overlap, first=col == 0, last=col == cols[-1]),
            )[: total[part].shape[0], : total[part].shape[1]]
            with torch.inference_mode():
                scores = network(padded[None])[0].numpy()[:, : weights.shape[0], : weights.shape[1]]
            sums[(slice(None), *part)] += scores * weights
            total[part] += weights
    mean = torch.from_numpy(sums / total)[None]
    wide = functional.interpolate(mean, scale_factor=side, mode="bilinear", align_corners=False)
    out: NDArray[np.float64] = wide[0, :, :height, :width].numpy()
    return out


@pytest.mark.parametrize(
    ("tile", "overlap", "blend"),
    [
        (96, 32, "hann"),
        (128, 64, "linear"),
        (96, 32, "gaussian"),
        (64, 32, "none"),
        (64, 0, "hann"),
        (128, 64, "hann"),
    ],
)
def test_blended_maps_are_weighted_means_of_tiles(
    tmp_path: Path, model: Path, tile: int, overlap: int, blend: str
) -> None:
    values = mosaic("uint8", 300, 330)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
    segmented(path, "-m", model, "--tile", tile, "--overlap", overlap, "--blend", blend)
    valid = (values != 0).any(axis=0)
    scores = blended(model, normalised(values, valid, 255), tile, overlap, blend)
    assert_best(class_map(tmp_path, "a"), scores, valid)


@pytest.mark.parametrize("blend", ["hann", "linear", "gaussian", "none"])
def test_blended_maps_do_not_depend_on_the_blocks(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, blend: str
) -> None:
    path = scene(tmp_path / "a.tif")
    made = {}
    for chunk in (32, 64, 256):
        small_blocks(monkeypatch, chunk)
        folder = tmp_path / str(chunk)
        segmented(path, "-m", model, "-o", folder, "--tile", 96, "--overlap", 32, "--blend", blend)
        made[chunk] = class_map(folder, "a").tobytes()
        assert made[chunk] == class_map_of_cog(folder, "a").tobytes()
    assert made[32] == made[64] == made[256]


def test_blended_maps_say_so(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif")
    result = segmented(path, "-m", model, "--tile", 96, "--overlap", 32, "--blend", "linear")
    assert "approximate: tiles of 96 overlap by 32 and are blended (linear)" in result.stderr
    report = report_of(tmp_path)
    assert report["exactness"] == "approximate"
    assert any(note.startswith("approximate") for note in report["notes"])
    with xarray.open_zarr(tmp_path / "a.classes.zarr") as dataset:
        assert dataset.attrs["fcn:exactness"] == "approximate"
        assert dataset.attrs["fcn:blend"] == "linear"
        assert (dataset.attrs["fcn:tile"], dataset.attrs["fcn:overlap"]) == (96, 32)


# --- the same bytes ------------------------------------------------------------------------------------------


def test_worker_processes_make_the_same_bytes(tmp_path: Path, model: Path, reference: Path) -> None:
    command = [*small_block_program(tmp_path), "segment", reference / "a.tif", "-m", model]
    result = run_program([*command, "-o", tmp_path / "out", "--workers", 2])
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    told = [line for line in result.stderr.splitlines() if not line.startswith("  ")]  # but the summary
    assert told.pop() == "a: writing the GeoTIFF"
    assert [line for line in told if not re.match(r"a: \d+ % of 0\.1 MPx", line)] == []  # nothing of dask's own
    assert told[-1].startswith("a: 100 %")
    assert output_bytes(tmp_path / "out", "a") == output_bytes(reference, "a")
    assert report_of(tmp_path / "out")["fingerprint"] == report_of(reference)["fingerprint"]


def test_an_earlier_run_settles_the_threads(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide the last bits, so a run goes on with those it began with, whatever the workers are now."""
    small_blocks(monkeypatch)
    path = scene(tmp_path / "a.tif")
    other = 2
    segmented(path, "-m", model, "--threads", other)
    complete = segmented(path, "-m", model)
    assert "complete already" in complete.stderr
    assert report_of(tmp_path)["plan"]["kernel"]["threads"] == other
    asked = fcn_batch("segment", path, "-m", model, "--threads", other + 1)
    assert asked.exit_code == 6
    interrupted(path, model, tmp_path / "b", monkeypatch)
    plan = Journal(tmp_path / "b" / "a.partial").plan()
    stored = plan.model_copy(update={"kernel": plan.kernel.model_copy(update={"threads": other})})
    (tmp_path / "b" / "a.partial" / "plan.json").write_text(stored.model_dump_json())
    segmented(path, "-m", model, "-o", tmp_path / "b")
    assert report_of(tmp_path / "b")["plan"]["kernel"]["threads"] == other


def test_parts_in_any_order_make_the_same_bytes(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    for part in ("3/3", "1/3", "1/3"):
        assert segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--part", part).stdout == ""
        assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    last = segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--part", "2/3")
    assert len(last.stdout.splitlines()) == 3
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    for option in ("--restart", "--overwrite"):
        refused = fcn_batch("segment", reference / "a.tif", "-o", tmp_path, "--part", "1/3", option)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"with {option} would discard what other parts have done" in refused.stderr


def test_who_begins_at_the_same_moment_goes_on_with_the_plan_of_who_was_first(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    settled, other = segment_module._settled, 2

    def too_early(*given: Any) -> Any:
        monkeypatch.setattr(segment_module, "_settled", settled)
        first = fcn_batch(
            "segment", reference / "a.tif", "-m", model, "-o", tmp_path, "--threads", other, "--part", "1/3"
        )
        assert first.exit_code == 0, first.stderr
        return given[0]

    monkeypatch.setattr(segment_module, "_settled", too_early)
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert report_of(tmp_path)["plan"]["kernel"]["threads"] == other


def test_a_cluster_started_by_others_makes_the_same_bytes(tmp_path: Path, model: Path, reference: Path) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address=None, silence_logs=40
    ) as cluster:
        segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--scheduler", cluster.scheduler_address)
        # the workers stay, and take the next job too
        options = ["-m", model, "-o", tmp_path / "b", "--scheduler", cluster.scheduler_address]
        segmented(reference / "a.tif", *options)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert output_bytes(tmp_path / "b", "a") == output_bytes(reference, "a")


def test_any_order_of_blocks_makes_the_same_bytes(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a pass of its own too: what a pass decides beside them changes no bit."""

    def shuffled(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        blocks = [block for work in works for block in work]
        assert len(works) < len(blocks) == 9
        order = np.random.default_rng(1).permutation(len(blocks))
        assert order.tolist() != list(range(len(blocks)))
        for index in order:
            execute(ticket, [(blocks[index],)], *rest)

    monkeypatch.setattr(segment_module, "execute", shuffled)
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


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
    values = noise(3, 700, 300)
    values[:, 200:560, :180] = 0
    path = write_raster(
        tmp_path / "a.tif", values, nodata=0, photometric="RGB", tiled=True, blockxsize=64, blockysize=64
    )
    made = {}
    for workers in (0, 1, 2, 4):
        folder = tmp_path / str(workers)
        segmented(path, "-m", model, "-o", folder, "--workers", workers)
        made[workers] = output_bytes(folder, "a")
        cut = report_of(folder)["plan"]["cut"]
        assert (cut["way"], cut["lane"], cut["segment"]) == ("stream", 128, 256), "three lanes of three segments"
    assert made[0] == made[1] == made[2] == made[4]

    def shuffled(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        assert len(works) == 9
        for index in np.random.default_rng(2).permutation(9):
            execute(ticket, [works[index]], *rest)

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "execute", shuffled)
        segmented(path, "-m", model, "-o", tmp_path / "shuffled")
    assert output_bytes(tmp_path / "shuffled", "a") == made[0]
    valid = (values != 0).any(axis=0)
    assert_best(class_map(tmp_path / "0", "a"), scores_of(model, normalised(values, valid, 255)), valid)


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


def test_a_block_done_twice_changes_nothing(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an orphan of a dead run, say."""

    def twice(ticket: Any, works: Sequence[Work], workers: Workers, on_receipt: Any, stop: Any) -> None:
        execute(ticket, works, workers, lambda _: None, stop)
        Journal(tmp_path / "a.partial").forget()
        execute(ticket, works, workers, on_receipt, stop)

    monkeypatch.setattr(segment_module, "execute", twice)
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert report_of(tmp_path)["classes"] == report_of(reference)["classes"]


# --- stretches without data ----------------------------------------------------------------------------------

STRETCHES: dict[str, list[tuple[slice, slice]]] = {
    "between": [(slice(150, 1100), slice(None))],
    "at the top": [(slice(0, 1000), slice(None))],
    "at the bottom": [(slice(300, None), slice(None))],
    "of one lane": [(slice(130, 1100), slice(0, 260))],
    "several": [(slice(40, 700), slice(None)), (slice(704, 1200), slice(None))],
    "one row of data": [(slice(0, 655), slice(None)), (slice(656, None), slice(None))],
    "on the blocks": [(slice(128, 1024), slice(None))],
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
    valid = (values != 0).any(axis=0)
    segmented(path, "-m", model)
    assert_best(class_map(tmp_path, "a"), scores_of(model, normalised(values, valid, 255)), valid)
    full = fcn_batch("plan", path, "-m", model).stdout
    share = float(re.findall(r"cost +([\d.]+) forward", full)[0])
    done = report_of(tmp_path)["forward_passes_per_pixel"]
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
    for options in ([], ["--tile", "64"], ["--tile", "96", "--overlap", "32"]):
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
    refused = fcn_batch("segment", reference / "a.tif", "-m", model, "-o", tmp_path / "h", "--precision", "fp16")
    assert refused.exit_code == 2
    assert "--precision fp16: for GPUs; give fp32 or bf16 on the CPU" in refused.stderr
    assert not (tmp_path / "h").exists()


def test_float32_is_the_default_of_a_model_that_was_not_measured(reference: Path) -> None:
    report = report_of(reference)
    assert report["precision"] == "fp32"
    with xarray.open_zarr(reference / "a.classes.zarr") as dataset:
        assert dataset.attrs["fcn:precision"] == "fp32"
        assert dataset.attrs["fcn:way"] == "stream"


def test_less_memory_means_narrower_lanes_and_the_same_map(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._LANE", 2**18)
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._LOADING", 0)
    values = mosaic("uint8", 300, 900)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
    segmented(path, "-m", model, "-o", tmp_path / "wide")
    wide = report_of(tmp_path / "wide")["plan"]["cut"]
    assert wide["lane"] == 1024
    needed = prepare(path, Options(model=str(model))).memory
    segmented(path, "-m", model, "-o", tmp_path / "narrow", "--memory", int(0.8 * needed))
    narrow = report_of(tmp_path / "narrow")["plan"]["cut"]
    assert narrow["lane"] < 1024
    valid = (values != 0).any(axis=0)
    scores = scores_of(model, normalised(values, valid, 255))
    for folder in ("wide", "narrow"):
        assert_best(class_map(tmp_path / folder, "a"), scores, valid)
    # without the option, what the earlier run chose is kept; with another one it is another plan
    assert "complete already" in segmented(path, "-m", model, "-o", tmp_path / "narrow").stderr
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


@pytest.mark.parametrize(("most", "after"), [(128, 0), (64, 0), (32, 0), (64, 3), (32, 7)])
def test_when_memory_runs_out_strips_are_halved(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, most: int, after: int
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._STRIP_PIXELS", {"cpu": 2**16})
    values = mosaic("uint8", 1000, 330)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
    seen = short_of_memory(monkeypatch, most, after=after)
    segmented(path, "-m", model)
    report = report_of(tmp_path)
    planned = report["plan"]["cut"]["tile"]
    assert planned == 160
    lowest = {128: 64, 64: 64, 32: 32}[most]  # halved, on the network's grid
    assert min(seen) == lowest
    assert report["notes"][-1] == (
        f"memory ran out: some rows were done in strips of {lowest} instead of {planned}; the same classes but at ties"
    )
    valid = (values != 0).any(axis=0)
    assert_best(class_map(tmp_path, "a"), scores_of(model, normalised(values, valid, 255)), valid)


def test_when_memory_has_run_out_the_run_can_be_taken_up(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "a.tif", 700, 200)
    with monkeypatch.context() as patch:
        short_of_memory(patch, 0, after=10)
        result = fcn_batch("segment", path, "-m", model)
    assert result.exit_code == 2
    assert (
        "out of memory on cpu with stream of 32 px in lanes of 128 px, the least that this plan allows; give --memory "
        in result.stderr
    )
    assert len(list((tmp_path / "a.partial" / "receipts").glob("*.json"))) >= 1
    segmented(path, "-m", model)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] >= 1
    segmented(path, "-m", model, "-o", tmp_path / "fresh")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "fresh", "a")


def test_tiles_without_memory_say_so(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "a.tif", 100, 100)
    short_of_memory(monkeypatch, 0)
    result = fcn_batch("segment", path, "-m", model, "--tile", 64)
    assert result.exit_code == 2
    assert "out of memory on cpu with tiles of 64 px" in result.stderr
    assert "give --tile 32 and --restart" in result.stderr


def test_other_runtime_errors_are_not_taken_for_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(RowStream, "push", broken)
    result = fcn_batch("segment", scene(tmp_path / "a.tif", 100, 100), "-m", model)
    assert result.exit_code == 1
    assert "could not create a primitive" in result.stderr


# --- what is made --------------------------------------------------------------------------------------------


def test_stdout_is_the_paths_and_the_folder_holds_no_more(reference: Path, tmp_path: Path, model: Path) -> None:
    result = segmented(reference / "a.tif", "-m", model, "-o", tmp_path / "new" / "folder")
    made = tmp_path / "new" / "folder"
    assert result.stdout == "".join(f"{made / f'a.{end}'}\n" for end in ("classes.zarr", "classes.tif", "run.json"))
    assert sorted(p.name for p in made.iterdir()) == sorted(NAMES)


def test_the_outputs_lie_beside_the_input_by_default(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", 40, 50)
    monkeypatch.chdir(tmp_path)
    result = segmented("in/a.tif", "-m", model)
    assert result.stdout.splitlines()[0] == str(tmp_path / "in" / "a.classes.zarr")
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == sorted(["a.tif", *NAMES])
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_zarr_and_geotiff_are_the_same_map(reference: Path) -> None:
    classes = class_map(reference, "a")
    assert (class_map_of_cog(reference, "a") == classes).all()
    with xarray.open_zarr(reference / "a.classes.zarr") as dataset:
        assert (dataset.classes.values == classes).all()
        assert dataset.attrs["fcn:fingerprint"] == report_of(reference)["fingerprint"]
        assert dataset.attrs["fcn:exactness"] == "exact"
    assert "class 5" in (reference / "a.classes.tif.aux.xml").read_text()


def test_the_report_says_what_was_done(reference: Path, model: Path) -> None:
    report = report_of(reference)
    classes = class_map(reference, "a")
    assert report["complete"] is True
    assert report["exactness"] == "exact"
    assert report["notes"] == []
    assert report["outputs"] == list(NAMES[:-1])
    assert report["blocks"] == 9
    assert [c["name"] for c in report["classes"]] == [f"class {k}" for k in range(6)]
    assert [c["pixels"] for c in report["classes"]] == [int((classes == 10 * k).sum()) for k in range(6)]
    assert sum(c["share"] for c in report["classes"]) == pytest.approx(1)
    assert report["nodata_pixels"] == 0
    assert report["plan"]["model"]["path"] == str(model)
    assert report["plan"]["input"]["path"] == str(reference / "a.tif")
    assert report["timing"]["blocks_done_by_earlier_runs"] == 0


def test_the_cost_is_what_was_announced(reference: Path, tmp_path: Path, model: Path) -> None:
    for options in ([], ["--tile", "96", "--overlap", "32"]):
        planned = fcn_batch("plan", reference / "a.tif", "-m", model, *options).stdout
        segmented(reference / "a.tif", "-m", model, "-o", tmp_path / str(len(options)), *options)
        share = report_of(tmp_path / str(len(options)))["forward_passes_per_pixel"]
        assert f"{share:.2f} forward passes per pixel" in planned


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
    assert "a.tif: tiny was trained at 7 km per pixel, this raster has 10 m" in result.stderr
    assert "b.tif: the raster has no coordinate reference system" in result.stderr


# --- again, and over what is there ---------------------------------------------------------------------------


def test_a_complete_run_again_does_nothing_and_says_so(tmp_path: Path, model: Path, reference: Path) -> None:
    first = segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    before = tree(tmp_path)
    again = segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert "a.tif: complete already" in again.stderr
    assert again.stdout == first.stdout
    assert tree(tmp_path) == before


def test_an_output_that_is_gone_is_not_complete(tmp_path: Path, model: Path, reference: Path) -> None:
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    (tmp_path / "a.classes.tif").unlink()
    result = fcn_batch("segment", reference / "a.tif", "-m", model, "-o", tmp_path)
    assert result.exit_code == 6
    assert "give --overwrite" in result.stderr
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--overwrite")
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


@pytest.mark.parametrize("name", NAMES)
def test_foreign_outputs_are_left_alone_unless_overwritten(
    tmp_path: Path, model: Path, reference: Path, name: str
) -> None:
    foreign = tmp_path / name
    if name.endswith(".zarr"):
        foreign.mkdir()
        (foreign / "zarr.json").write_text("{}")
    else:
        foreign.write_text("{}")
    before = tree(tmp_path)
    result = fcn_batch("segment", reference / "a.tif", "-m", model, "-o", tmp_path)
    assert result.exit_code == 6
    assert result.stderr == (
        f"fcn-batch: {foreign}: exists already and was not made by this very run; give --overwrite to replace it, "
        "or -o DIR for another folder\n"
    )
    assert tree(tmp_path) == before
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--overwrite")
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


def test_a_linked_output_is_replaced_and_its_target_left(tmp_path: Path, model: Path, reference: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "keep").write_text("me")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.classes.zarr").symlink_to(target)
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path / "out", "--overwrite")
    assert output_bytes(tmp_path / "out", "a") == output_bytes(reference, "a")
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
    assert report_of(tmp_path)["exactness"] == "approximate"
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


def interrupted(path: Path, model: Path, folder: Path, patch: pytest.MonkeyPatch, *, blocks: int = 4) -> None:
    """Leave a run in `folder` that got so far."""
    with patch.context() as inner:
        inner.setattr(segment_module, "execute", stop_after(blocks))
        with pytest.raises(Killed):
            fcn_batch("segment", path, "-m", model, "-o", folder)


@pytest.mark.parametrize(
    ("size", "receipts", "workers", "segment"),
    [
        ((1500, 1600), 5, 0, 1536),  # 13 lanes
        ((6000, 128), 4, 0, 6016),  # one lane, of one segment
        ((3000, 330), 6, 2, 1536),  # three lanes of two segments
    ],
    ids=["lanes", "one segment", "two workers"],
)
def test_kill_9_and_the_same_command_again(
    tmp_path: Path, model: Path, size: tuple[int, int], receipts: int, workers: int, segment: int
) -> None:
    path = scene(tmp_path / "a.tif", *size)
    total = -(-size[0] // 128) * -(-size[1] // 128)  # so many that the run is not over before it is killed
    command = [*small_block_program(tmp_path, halos=1), "segment", path, "-m", model, "-o", tmp_path / "out"]
    done = tmp_path / "out" / "a.partial" / "receipts"
    victim = subprocess.Popen(
        [str(part) for part in (*command, "--workers", workers)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(list(done.glob("*.json"))) < receipts:
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.partial"]
    finished = tree(done)
    assert receipts <= len(finished) < total

    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        publish = Outputs.publish
        patch.setattr(Outputs, "publish", lambda self: (seen.update(tree(done)), publish(self))[1])
        result = segmented(path, "-m", model, "-o", tmp_path / "out")
    assert "a.tif: resuming the interrupted run" in result.stderr
    assert {name: seen[name] for name in finished if not name.endswith(".tmp")} == {
        name: state for name, state in finished.items() if not name.endswith(".tmp")
    }
    assert len([name for name in seen if name.endswith(".json")]) == total
    earlier = len([name for name in finished if name.endswith(".json")])
    assert report_of(tmp_path / "out")["timing"]["blocks_done_by_earlier_runs"] == earlier
    plan = report_of(tmp_path / "out")["plan"]  # settled by the run that was killed
    assert plan["cut"]["segment"] == segment
    with pytest.MonkeyPatch.context() as patch:
        with_the_plan_of(max(1, workers), patch)
        segmented(path, "-m", model, "-o", tmp_path / "undisturbed", "--threads", plan["kernel"]["threads"])
    assert report_of(tmp_path / "undisturbed")["plan"] == plan
    assert output_bytes(tmp_path / "out", "a") == output_bytes(tmp_path / "undisturbed", "a")
    assert report_of(tmp_path / "out")["classes"] == report_of(tmp_path / "undisturbed")["classes"]


@pytest.mark.parametrize("blocks", [1, 2, 5, 7, 10, 14])
@pytest.mark.parametrize("options", [[], ["--tile", "64"], ["--tile", "96", "--overlap", "32"]], ids=" ".join)
def test_resuming_inside_a_segment_makes_the_same_bytes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, options: list[str]
) -> None:
    path = scene(tmp_path / "a.tif", 1000, 200)  # two lanes of eight blocks
    command = [path, "-m", model, *options]
    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "execute", stop_after(blocks))
        with pytest.raises(Killed):
            fcn_batch("segment", *command)
    segmented(*command)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == blocks
    segmented(*command, "-o", tmp_path / "undisturbed")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "undisturbed", "a")


def test_workers_change_the_segments_but_a_resumed_run_keeps_its_own(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_segments(monkeypatch)
    path = scene(tmp_path / "a.tif", 700, 200)

    def stored(folder: Path) -> int:
        return Journal(folder / "a.partial").plan().cut.segment

    for begun, taken_up, segment in (("0", "2", 768), ("2", "0", 384)):
        folder = tmp_path / begun
        command = ["segment", path, "-m", model, "-o", folder, "--threads", 1, "--workers"]
        with monkeypatch.context() as patch:
            patch.setattr(segment_module, "execute", stop_after(3))
            with pytest.raises(Killed):
                fcn_batch(*command, begun)
        assert stored(folder) == segment
        result = fcn_batch(*command, taken_up)
        assert result.exit_code == 0, result.stderr
        assert report_of(folder)["plan"]["cut"]["segment"] == segment
        assert report_of(folder)["timing"]["blocks_done_by_earlier_runs"] == 3
        assert "complete already" in fcn_batch(*command, taken_up).stderr


def test_an_interrupt_stops_the_run_at_once(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 6000, 600)
    # what runs the tests may have told its children to ignore interrupts, as a shell does in the background
    heard = ["env", "--default-signal=INT", *small_block_program(tmp_path)]
    command = [*heard, "segment", path, "-m", model, "-o", tmp_path / "out"]
    done = tmp_path / "out" / "a.partial" / "receipts"
    with subprocess.Popen([str(w) for w in command], stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + PATIENCE_S
        while not list(done.glob("*.json")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        asked = time.monotonic()
        told = run.communicate(timeout=PATIENCE_S)[1]
        assert time.monotonic() - asked < 20
    assert run.returncode == 130
    assert told.splitlines()[-1] == "fcn-batch: interrupted; run the same command again to go on"
    assert "Traceback" not in told
    assert 1 <= len(list(done.glob("*.json"))) < 47 * 5


def dying(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def die(*arguments: Any, **options: Any) -> Any:
        if after:
            function(*arguments, **options)
        raise Killed

    return die


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
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
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, where: str, *, after: bool
) -> None:
    owner, _, name = where.rpartition(".")
    target = resolve_name(f"fcn_batch.{owner}")
    options = [reference / "a.tif", "-m", model, "-o", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying(getattr(target, name), after=after))
        with pytest.raises(Killed):
            fcn_batch("segment", *options)
    assert not (tmp_path / "a.run.json").exists() or all((tmp_path / name).exists() for name in NAMES)
    segmented(*options)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, model: Path, reference: Path) -> Path:
    """A folder with a.tif, complete old outputs of it with other settings, and new ones about to be published."""
    folder = tmp_path_factory.mktemp("sealed")
    shutil.copy2(reference / "a.tif", folder)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        segmented(folder / "a.tif", "-m", model, "--tile", "96", "--overlap", "32", "--confidence", "--pyramid")
        patch.setattr(Outputs, "publish", dying(Outputs.publish, after=False))
        with pytest.raises(Killed):
            fcn_batch("segment", folder / "a.tif", "-m", model, "--overwrite")
    return folder


def dying_at(count: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Kill the process before the `count`-th change of a name during publishing; returns the calls counted."""
    calls: list[int] = []

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) > count:
                raise Killed
            return function(*arguments, **options)

        return counted

    for name in ("replace", "rename", "unlink"):
        patch.setattr(Path, name, wrapped(getattr(Path, name)))
    return calls


def check_report_last(folder: Path, reference: Path) -> None:
    """Where a report is, the outputs are those that it tells of, old or new."""
    if not (folder / "a.run.json").exists():
        return
    report = report_of(folder)
    with xarray.open_zarr(folder / "a.classes.zarr") as dataset:
        assert dataset.attrs["fcn:fingerprint"] == report["fingerprint"]
    assert (class_map_of_cog(folder, "a") == class_map(folder, "a")).all()
    if report["fingerprint"] == report_of(reference)["fingerprint"]:
        assert output_bytes(folder, "a") == output_bytes(reference, "a")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("step", range(15))
def test_killed_while_publishing_the_next_run_publishes(
    tmp_path: Path, model: Path, reference: Path, sealed: Path, step: int, overwrite: list[str]
) -> None:
    shutil.copytree(sealed, tmp_path, dirs_exist_ok=True)
    options = [tmp_path / "a.tif", "-m", model]
    with pytest.MonkeyPatch.context() as patch:
        publish = Outputs.publish

        def killed_inside(self: Outputs) -> None:
            with pytest.MonkeyPatch.context() as inner:
                calls = dying_at(step, inner)
                publish(self)
                assert len(calls) < 15, "there are more steps than are tried here"

        patch.setattr(Outputs, "publish", killed_inside)
        try:
            segmented(*options, "--overwrite")
        except Killed:
            finished = False
        else:
            finished = True
    assert finished == (step >= 13)
    check_report_last(tmp_path, reference)
    segmented(*options, *overwrite)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.tif", *NAMES])


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--tile", "64"], "cut.way: stream, now tiles"),
        pytest.param(["--precision", "bf16"], "kernel.precision: fp32, now bf16", marks=needs_bf16),
        (["--tile", "96", "--overlap", "32"], "cut.blend: None, now hann"),
        (["--bands", "3,2,1"], "bands: [1, 2, 3], now [3, 2, 1]"),
        (["--full-scale", "200"], "full_scale: 255.0, now 200.0"),
    ],
)
def test_other_settings_are_refused_until_restart(
    tmp_path: Path,
    model: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    difference: str,
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch)
    before = tree(tmp_path)
    command = [reference / "a.tif", "-m", model, "-o", tmp_path, *options]
    result = fcn_batch("segment", *command)
    assert result.exit_code == 7
    assert difference in result.stderr
    assert "--restart" in result.stderr
    assert tree(tmp_path) == before
    segmented(*command, "--restart")
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == 0
    segmented(*command, "-o", tmp_path / "fresh")
    assert output_bytes(tmp_path, "a") == output_bytes(tmp_path / "fresh", "a")


def test_a_changed_input_is_refused_until_restart(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "a.tif")
    interrupted(path, model, tmp_path, monkeypatch)
    os.utime(path, ns=(1, 1))
    result = fcn_batch("segment", path, "-m", model)
    assert result.exit_code == 7
    assert "input.files.0.modified_ns: " in result.stderr
    segmented(path, "-m", model, "--restart")


def test_a_moved_run_goes_on(tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another mount point, say: the model and the input too have other paths."""
    (tmp_path / "old").mkdir()
    path, weights = tmp_path / "old" / "a.tif", tmp_path / "old" / "m.safetensors"
    shutil.copy2(reference / "a.tif", path)
    shutil.copy2(model, weights)
    interrupted(path, weights, path.parent, monkeypatch)
    path.parent.rename(tmp_path / "new")
    segmented(tmp_path / "new" / "a.tif", "-m", tmp_path / "new" / "m.safetensors")
    assert output_bytes(tmp_path / "new", "a") == output_bytes(reference, "a")
    assert report_of(tmp_path / "new")["timing"]["blocks_done_by_earlier_runs"] == 4


def test_an_unreadable_plan_is_refused_until_restart(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch)
    (tmp_path / "a.partial" / "plan.json").write_text("{")
    command = [reference / "a.tif", "-m", model, "-o", tmp_path]
    assert fcn_batch("segment", *command).exit_code == 7
    segmented(*command, "--restart")
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


def test_a_torn_receipt_means_that_its_block_is_done_again(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch, blocks=9)
    for name in ("000000003.json", "000000007.json"):
        os.truncate(tmp_path / "a.partial" / "receipts" / name, 50)
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == 7
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


@pytest.mark.parametrize("loss", ["flipped bit", "lost row of chunks", "empty file"])
def test_blocks_that_the_disk_lost_are_done_again(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch, blocks=9)
    chunks = tmp_path / "a.partial" / "a.classes.zarr" / "classes" / "c"
    if loss == "lost row of chunks":
        shutil.rmtree(chunks / "1")  # of blocks 3, 4 and 5
    else:
        data = bytearray((chunks / "0" / "0").read_bytes())
        data[len(data) // 2] ^= 1
        (chunks / "0" / "0").write_bytes(data if loss == "flipped bit" else b"")
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    earlier = 6 if loss == "lost row of chunks" else 8
    assert report_of(tmp_path)["timing"]["blocks_done_by_earlier_runs"] == earlier
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


def test_what_killed_writers_left_does_not_get_into_the_store(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch)
    (tmp_path / "a.partial" / "a.classes.zarr" / "classes" / "c" / "0" / "1.0123abcd.partial").write_bytes(b"half")
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path)
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


def test_a_vrt_whose_source_changed_is_not_complete(tmp_path: Path, model: Path) -> None:
    source = scene(tmp_path / "source.tif", 60, 70)
    vrt = tmp_path / "a.vrt"
    copy(source, vrt, driver="VRT")
    segmented(vrt, "-m", model)
    assert "complete already" in segmented(vrt, "-m", model).stderr
    os.utime(source, ns=(1, 1))
    assert fcn_batch("segment", vrt, "-m", model).exit_code == 6


def test_a_mask_beside_the_raster_belongs_to_it(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 60, 70)
    segmented(path, "-m", model)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.zeros((60, 70), np.uint8))
    os.utime(path, ns=(path.stat().st_atime_ns, 5))
    result = fcn_batch("segment", path, "-m", model)
    assert result.exit_code == 6
    assert (tmp_path / "a.tif.msk").exists()


def test_a_run_waits_while_another_one_begins_or_publishes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / "a.tif", 60, 70)
    waits, note = threading.Event(), Lines.note

    def heard(self: Lines, text: str) -> None:
        note(self, text)
        if "waiting" in text:
            waits.set()

    monkeypatch.setattr(Lines, "note", heard)
    with ThreadPoolExecutor(1) as pool:
        with only_one(tmp_path / ".a.lock"):
            # flock counts per opened file: another thread is another run
            run = pool.submit(fcn_batch, "segment", path, "-m", model)
            assert waits.wait(PATIENCE_S)
            assert not (tmp_path / "a.partial").exists()
        result = run.result()
    assert result.exit_code == 0, result.stderr
    assert f"a.tif: waiting for process {os.getpid()} on " in result.stderr
    assert not (tmp_path / ".a.lock").exists()


def test_a_run_that_somebody_is_at_is_not_discarded(
    tmp_path: Path, model: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(reference / "a.tif", model, tmp_path, monkeypatch)
    claim = Journal(tmp_path / "a.partial").claims.take("run-other")
    assert claim is not None
    before = tree(tmp_path / "a.partial" / "receipts")
    result = fcn_batch("segment", reference / "a.tif", "-m", model, "-o", tmp_path, "--restart")
    assert result.exit_code == 6
    assert f"cannot be discarded, process {os.getpid()} on " in result.stderr
    assert tree(tmp_path / "a.partial" / "receipts") == before
    claim.release()
    segmented(reference / "a.tif", "-m", model, "-o", tmp_path, "--restart")
    assert output_bytes(tmp_path, "a") == output_bytes(reference, "a")


def test_processes_started_at_once_make_one_map(tmp_path: Path, model: Path, reference: Path) -> None:
    command = [*small_block_program(tmp_path), "segment", reference / "a.tif", "-m", model, "-o", tmp_path / "out"]
    words = [str(word) for word in (*command, "--threads", 1)]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=PATIENCE_S)[1] for process in both]
    codes = [process.returncode for process in both]
    assert codes == [0, 0], told
    assert output_bytes(tmp_path / "out", "a") == output_bytes(reference, "a")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == sorted(NAMES)


def test_an_output_that_is_an_input_is_refused(tmp_path: Path, model: Path) -> None:
    first, second = scene(tmp_path / "a.tif", 60, 70), scene(tmp_path / "a.classes.tif", 60, 70)
    before = second.read_bytes()
    result = fcn_batch("segment", first, second, "-m", model, "--overwrite")
    assert result.exit_code == 2
    assert f"{second}: an input that the outputs of {first} would replace" in result.stderr
    assert second.read_bytes() == before


def test_two_ways_to_one_folder_are_one_folder(tmp_path: Path, model: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one = scene(tmp_path / "real" / "a.tif", 60, 70)
    other = scene(tmp_path / "real" / "a.jp2.tif", 60, 70).rename(tmp_path / "real" / "a.jpg")
    result = fcn_batch("segment", one, tmp_path / "link" / other.name, "-m", model)
    assert result.exit_code == 2
    assert "would both be written as a.*" in result.stderr


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_staging_name_that_is_no_folder_is_refused(tmp_path: Path, model: Path, kind: str) -> None:
    path = scene(tmp_path / "a.tif", 60, 70)
    staging = tmp_path / "a.partial"
    if kind == "file":
        staging.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        staging.symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    for options in ([], ["--restart"]):
        result = fcn_batch("segment", path, "-m", model, *options)
        assert result.exit_code == 6
        assert f"{staging}: not a folder" in result.stderr
        assert tree(tmp_path) == before


def test_names_that_cannot_be_used_are_refused(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 60, 70)
    long = path.rename(tmp_path / f"{'x' * 220}.tif")
    result = fcn_batch("segment", long, "-m", model)
    assert result.exit_code == 2
    assert "the name is too long for those of its outputs" in result.stderr
    odd = long.rename(tmp_path / os.fsdecode(b"bad\xff.tif"))
    program = run_program([Path(sys.executable).with_name("fcn-batch"), "segment", odd, "-m", model])
    assert program.returncode == 4
    assert "not UTF-8" in program.stderr


# --- several inputs ------------------------------------------------------------------------------------------


def test_several_inputs(tmp_path: Path, model: Path) -> None:
    paths = [scene(tmp_path / f"{name}.tif", 40 + size, 50) for size, name in enumerate("abc")]
    result = segmented(*paths, "-m", model, "-o", tmp_path / "out")
    assert len(result.stdout.splitlines()) == 9
    assert [class_map(tmp_path / "out", name).shape for name in "abc"] == [(40, 50), (41, 50), (42, 50)]


def test_two_inputs_of_one_name_are_refused_before_anything_is_done(tmp_path: Path, model: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        scene(tmp_path / name / "a.tif", 40, 50)
    before = tree(tmp_path)
    inputs = [tmp_path / "one" / "a.tif", tmp_path / "two" / "a.tif"]
    result = fcn_batch("segment", *inputs, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{inputs[0]} and {inputs[1]} would both be written as a.* in {tmp_path / 'out'}" in result.stderr
    assert tree(tmp_path) == before
    segmented(*inputs, "-m", model)  # each beside its own input
    assert (tmp_path / "one" / "a.run.json").exists()
    assert (tmp_path / "two" / "a.run.json").exists()
