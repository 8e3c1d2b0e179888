"""Windows computed again: silent on a good map, loud on a label that the network does not give."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import zarr
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.network.device import multiplies_bf16
from fcn_batch.pipeline.network.predictor import Strips
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished import verify as verify_module
from fcn_batch.workflows.finished.verify import Sample, Verification, verify
from fcn_batch.workflows.outputs.publishing import find_run
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.processors import BF16
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, scene, segmented, small_blocks, tree

SIZE = Size(300, 330)
ALL = 100
"""More windows than there are."""
WAYS: dict[str, list[object]] = {
    "stream": [],
    "tiles": ["--tile", 64],
    **({"bf16": ["--precision", "bf16"]} if multiplies_bf16() else {}),
    "blend": ["--overlap", 32, "--tile", 96],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stride 32, halo 128."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[dict[str, Path]]:
    """A folder for each way, with a raster, a quarter of it without data, and its map."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        for way, options in WAYS.items():
            folders[way] = tmp_path_factory.mktemp(way.replace(" ", "_"))
            raster = scene(folders[way] / "a.tif", SIZE.height, SIZE.width, nodata=0)
            with rasterio.open(raster, "r+") as dataset:
                dataset.write(np.zeros((3, 150, 165), np.uint8), window=rasterio.windows.Window(0, 0, 165, 150))
            segmented(raster, "-m", model, "-q", *options)
    before = {way: tree(folder) for way, folder in folders.items()}
    yield folders
    assert {way: tree(folder) for way, folder in folders.items()} == before, "to verify changes nothing"


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_SIDE", 96)
    torch.set_num_threads(1)


def _copy(maps: dict[str, Path], way: str, folder: Path) -> Path:
    """The map, to do something to it; the raster stays where it is."""
    shutil.copytree(maps[way], folder / way)
    return folder / way


def _plant(folder: Path, row: int, col: int, label: int) -> None:
    """Write another label into the store."""
    array = zarr.open_array(str(folder / "a.classes.zarr" / "classes"), mode="r+")
    assert array[row, col] != label
    array[row, col] = label


def _verified(folder: Path, samples: int = ALL, seed: int = 0) -> Verification:
    return verify(folder, samples, seed, Quiet())


def _windows(found: Verification) -> list[Window]:
    return [Window(one.row, one.col, one.height, one.width) for one in found.samples]


# --- what is found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_good_map_is_what_the_network_gives(way: str, maps: dict[str, Path]) -> None:
    found = _verified(maps[way])
    assert found.ok
    assert (found.exact, found.precision) == (way != "blend", "bf16" if way == "bf16" else "fp32")
    assert found.compared == (class_map(maps[way], "a") != 255).sum()
    assert sum(window.pixels for window in _windows(found)) == SIZE.pixels, "the windows cover the map"
    assert found.notes == []
    if way == "blend":
        assert 0 < found.differ < found.compared
    else:
        assert found.differ == found.ties <= 0.01 * found.compared


@pytest.mark.parametrize("way", ["stream", "tiles", BF16])
@pytest.mark.parametrize("row", [127, 128])
def test_a_planted_label_is_found(row: int, way: str, maps: dict[str, Path], tmp_path: Path) -> None:
    folder, col = _copy(maps, way, tmp_path), 200
    labels = class_map(folder, "a")
    scores = _whole_scores(maps[way], folder)[:, row, col]
    worst = 10 * int(scores.argmin())  # of the best and the second best, one may be a tie
    before = _verified(folder)
    _plant(folder, row, col, worst)
    found = _verified(folder)
    assert labels[row, col] != worst
    assert not found.ok
    assert (found.differ - before.differ, found.ties - before.ties) == (1, 0)
    where = [window for window, one in zip(_windows(found), found.samples, strict=True) if one.wrong]
    assert len(where) == 1
    assert where[0].row <= row < where[0].stop_row
    assert where[0].col <= col < where[0].stop_col


def _whole_scores(folder: Path, moved: Path) -> NDArray[np.float32]:
    """Scores of the whole image, rows and columns up to a multiple of the stride."""
    plan = json.loads((moved / "a.run.json").read_text())["plan"]
    network = load_model(Path(plan["model"]["path"]))[1]
    with rasterio.open(folder / "a.tif") as dataset:
        values, valid = dataset.read(), dataset.dataset_mask() > 0
    x = np.zeros((1, 3, 320, 352), np.float32)
    x[0, :, : SIZE.height, : SIZE.width] = np.where(valid, (values / 255 - 0.392) / 0.225, 0)
    with torch.inference_mode():
        scores: NDArray[np.float32] = network(torch.from_numpy(x))[0].numpy()
    return scores


@pytest.mark.parametrize(("row", "col", "label"), [(10, 10, 0), (200, 200, 255), (200, 200, 77)])
def test_data_where_there_are_none_and_the_other_way_round(
    row: int, col: int, label: int, maps: dict[str, Path], tmp_path: Path
) -> None:
    folder = _copy(maps, "stream", tmp_path)
    before = _verified(folder)
    _plant(folder, row, col, label)
    found = _verified(folder)
    assert (found.differ - before.differ, found.ties - before.ties, found.ok) == (1, 0, False)
    assert found.compared - before.compared == (row == 10)
    no_help = _compared(folder, Window(row, col, 1, 1), np.zeros((6, 1, 1), np.float32), valid=row != 10)
    assert (no_help.compared, no_help.differ, no_help.ties) == (1, 1, 0), "all scores alike are no tie of it"


def test_a_lost_chunk_is_found(maps: dict[str, Path], tmp_path: Path) -> None:
    """And a map that lost all of them is no reason to look where the input has no data."""
    folder, good = _copy(maps, "stream", tmp_path), _verified(maps["stream"])
    (folder / "a.classes.zarr" / "classes" / "c" / "1" / "1").unlink()
    found = _verified(folder)
    assert found.differ == (class_map(maps["stream"], "a")[128:256, 128:256] != 255).sum() > 15000
    assert not found.ok
    shutil.rmtree(folder / "a.classes.zarr" / "classes" / "c")
    found = _verified(folder, sum(one.compared > 0 for one in good.samples))
    assert all(one.differ == one.compared > 0 for one in found.samples)


def test_of_a_blended_map_only_the_share_is_told(maps: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(maps, "blend", tmp_path)
    before = _verified(folder)
    _plant(folder, 299, 329, (int(class_map(folder, "a")[299, 329]) + 10) % 60)
    found = _verified(folder)
    assert found.ok
    assert abs(found.differ - before.differ) <= 1
    assert not found.exact


def _compared(folder: Path, window: Window, scores: NDArray[np.float32], *, valid: bool = True) -> Sample:
    """What is said of a window of the map, were these its scores."""
    outputs, report = find_run(folder)
    plan = Plan.model_validate(report["plan"])
    check = verify_module._Check.of(outputs.folder / outputs.report, plan, RasterioSource(folder / "a.tif"), outputs)
    return check._compared(window, scores, np.full(scores.shape[1:], valid))


@pytest.mark.parametrize(("gap", "tie"), [(0.5e-4, True), (2e-4, False)])
def test_a_tie_is_a_label_whose_score_is_as_good(gap: float, tie: bool, maps: dict[str, Path]) -> None:
    """The label's own score counts: that two others are alike excuses nothing."""
    mine = int(class_map(maps["stream"], "a")[200, 200]) // 10
    scores = np.full((6, 1, 1), -1.0, np.float32)
    scores[mine], scores[(mine + 1) % 6], scores[(mine + 2) % 6] = 1 - gap, 1, 1
    sample = _compared(maps["stream"], Window(200, 200, 1, 1), scores)
    assert (sample.compared, sample.differ, sample.ties) == (1, 1, int(tie))


# --- which windows -------------------------------------------------------------------------------------------


def test_windows_do_not_overlap_and_lie_across_blocks() -> None:
    times = np.zeros((SIZE.height, SIZE.width), int)
    windows = list(verify_module._places(SIZE, ALL, 1))
    for window in windows:
        times[window.slices()] += 1
    assert (times == 1).all()
    assert any(window.row < 128 < window.stop_row and window.col < 128 < window.stop_col for window in windows)
    assert list(verify_module._places(Size(96, 20), 5, 0)) == [Window(0, 0, 96, 20)], "smaller than a window"
    assert len({*verify_module._places(Size(10**7, 10**7), 4, 0)}) == 4, "huge, and there at once"


def test_the_seed_decides_the_windows_and_those_with_data_come_first(maps: dict[str, Path]) -> None:
    one, again, other = (_windows(_verified(maps["stream"], 3, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == 3
    everywhere = _verified(maps["stream"])
    filled = {window for window, one in zip(_windows(everywhere), everywhere.samples, strict=True) if one.compared}
    assert len(filled) < len(everywhere.samples)
    assert set(_windows(_verified(maps["stream"], len(filled)))) == filled


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "seed", "option", "value"), [(0, 0, "samples", 0), (1, -1, "seed", -1)])
def test_numbers_that_make_no_sense(samples: int, seed: int, option: str, value: int, maps: dict[str, Path]) -> None:
    with refuses("option-value", option=option, value=value):
        _verified(maps["stream"], samples, seed)


@contextmanager
def _report(folder: Path) -> Iterator[Any]:
    """The report of a run, to be changed."""
    report = json.loads((folder / "a.run.json").read_text())
    yield report
    (folder / "a.run.json").write_text(json.dumps(report))


def _other_model(folder: Path) -> None:
    (folder / "m.safetensors").unlink()
    save_tiny_model(folder / "m.safetensors", fc_kernel=1, seed=1)


def _later(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


CHANGES: dict[str, tuple[Callable[[Path], object], str, dict[str, str]]] = {
    "no raster": (
        lambda folder: (folder / "a.tif").unlink(),
        "input-missing",
        {"path": "/gone/a.tif", "report": "FOLDER/a.run.json"},
    ),
    "other bytes": (
        lambda folder: write_raster(folder / "a.tif", noise(3, 300, 330, seed=9)[:, :, :329]),
        "input-changed",
        {"file": "a.tif", "path": "FOLDER/a.tif"},
    ),
    "another time": (lambda folder: _later(folder / "a.tif"), "input-changed", {"file": "a.tif"}),
    "a side file": (
        lambda folder: shutil.copy(folder / "a.tif", folder / "a.tif.msk"),
        "input-changed",
        {"file": "a.tif.msk", "path": "FOLDER/a.tif"},
    ),
    "another model": (_other_model, "model-changed", {"path": "FOLDER/m.safetensors", "report": "a.run.json"}),
    "another size": (
        lambda folder: zarr.open_array(str(folder / "a.classes.zarr" / "classes"), mode="r+").resize((300, 320)),
        "size-mismatch",
        {"size": str(Size(300, 320))},
    ),
}


def test_a_map_that_moved_with_its_raster_and_what_changed_since(maps: dict[str, Path], tmp_path: Path) -> None:
    """Its input and model are in its folder, and only there."""
    moved = _copy(maps, "stream", tmp_path)
    with _report(moved) as report:
        plan = report["plan"]
        shutil.copy(plan["model"]["path"], moved / "m.safetensors")
        for place in (plan["input"], *plan["input"]["sources"]):
            place["path"] = "/gone/a.tif"
        plan["model"]["path"] = str(moved / "m.safetensors")
    found = _verified(moved, 2)
    assert found.ok
    assert found.compared
    for change, code, fields in CHANGES.values():
        shutil.copytree(moved, tmp_path / "kept")
        change(moved)
        with refuses(code, **{name: text.replace("FOLDER", str(moved)) for name, text in fields.items()}):
            _verified(moved)
        shutil.rmtree(moved)
        (tmp_path / "kept").rename(moved)
    (moved / "m.safetensors").unlink()
    with pytest.raises(ModelError):
        _verified(moved)


def test_what_a_report_says(maps: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(maps, "stream", tmp_path)
    with _report(folder) as report:
        report["plan"]["kernel"].update(instructions="SSE9", torch="1.0")
    found = _verified(folder, 1)
    assert (found.ok, len(found.notes)) == (True, 2)
    assert "SSE9" in found.notes[0]
    assert "1.0" in found.notes[1]
    with _report(folder) as report:
        report["plan"]["kernel"].update(precision="fp16", device="cpu", instructions="Some GPU")
    with refuses("precision-unsupported", precision="fp16", machine="Some GPU", device="cpu"):
        _verified(folder)
    with _report(folder) as report:
        report["plan"]["unknown"] = 1
    with refuses("report-without-plan", path=folder / "a.run.json"):
        _verified(folder)


def test_out_of_memory_is_told(maps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("fcn_batch.pipeline.network.predictor._ModuleTiles._run", full)
    with refuses("memory-short"):
        _verified(maps["stream"], 1)


# --- how it is computed --------------------------------------------------------------------------------------


def test_what_streams_and_cuts_is_not_used_in_float32(maps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of theirs would hide itself."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("fcn_batch.pipeline.network.stream.RowStream.push", refuse)
    monkeypatch.setattr(Strips, "__init__", refuse)
    assert _verified(maps["stream"], 2).ok


@pytest.mark.parametrize("way", ["stream", "blend"])
def test_twice_the_halo_is_read(way: str, maps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Window] = []
    read = RasterioSource.read

    def watched(source: Any, window: Window, bands: tuple[int, ...]) -> Any:
        seen.append(window)
        return read(source, window, bands)

    monkeypatch.setattr(RasterioSource, "read", watched)
    monkeypatch.setattr(verify_module, "_SIDE", 16)
    for window in _windows(_verified(maps[way], 5)):
        wanted = window.aligned(32)
        bottom, right = -(-wanted.stop_row // 32) * 32, -(-wanted.stop_col // 32) * 32
        grown = Window(wanted.row, wanted.col, bottom - wanted.row, right - wanted.col).padded(256).clipped(SIZE)
        assert grown in seen


# --- how it is told ------------------------------------------------------------------------------------------


def _found(*samples: Sample, exact: bool = True) -> Verification:
    return Verification("/maps/a.run.json", exact, "fp32", 7, samples, ["a note"])


SAMPLES = (Sample(0, 512, 512, 512, 262144, 3, 2), Sample(512, 0, 100, 512, 51200, 0, 0))


def test_it_is_told_to_people_and_programs() -> None:
    pairs = _found(*SAMPLES).describe()
    assert [name for name, _ in pairs] == ["run", "windows", "differ", "result", "window", "window", "note"]
    texts = [text for _, text in pairs]
    for text, parts in zip(texts, (["/maps/a.run.json"], ["313,344", "7"], ["0.0010 %"], ["1"]), strict=False):
        assert all(part in text for part in parts)
    assert texts[4].startswith("rows 0..511, cols 512..1023: ")
    assert texts[-1] == "a note"
    told = json.loads(_found(*SAMPLES).to_json())
    assert (told["ok"], told["compared"], told["differ"], told["ties"]) == (False, 313344, 3, 2)
    assert told["share"] == 3 / 313344
    assert told["samples"][1] == {
        "row": 512, "col": 0, "height": 100, "width": 512, "compared": 51200, "differ": 0, "ties": 0
    }  # fmt: skip
    assert (told["exact"], told["precision"], told["seed"], told["notes"]) == (True, "fp32", 7, ["a note"])


@pytest.mark.parametrize(
    ("differ", "ties", "exact", "ok"),
    [(0, 0, True, True), (2, 2, True, True), (2, 1, True, False), (9, 0, False, True)],
)
def test_when_it_is_well(differ: int, ties: int, exact: bool, ok: bool) -> None:
    assert _found(Sample(0, 0, 9, 9, 81, differ, ties), exact=exact).ok == ok
    assert json.loads(_found(Sample(0, 0, 9, 9, 0, 0, 0)).to_json())["share"] == 0, "of nothing compared"


def test_the_command_ends_with_a_code(maps: dict[str, Path], tmp_path: Path) -> None:
    store = _copy(maps, "stream", tmp_path) / "a.classes.zarr"
    good = fcn_batch("verify", store, "-n", ALL, "--json", "-q")
    assert (good.exit_code, json.loads(good.stdout)["ok"], good.stderr) == (0, True, "")
    _plant(store.parent, 200, 200, 255)
    bad = fcn_batch("verify", store, "-n", ALL, "-q")
    assert (bad.exit_code, len(bad.stderr.splitlines())) == (9, 1)
    assert fcn_batch("verify", store, "-n", ALL, "-q", "--json").exit_code == 9
