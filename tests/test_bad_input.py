"""Whatever is wrong: one line that names it and says what to do, the right exit code, and nothing left behind."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import Result
from rasterio.transform import Affine

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.workflows import run as run_module
from fcn_batch.workflows.outputs.stitch import create_store
from tests.errors import refused
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, output_bytes, scene, segmented, small_blocks, tree

NOBODY = 65534


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nobody(open_folder: Path) -> Iterator[Path]:
    """The folder above, entered by a user who may write nowhere in it; files made in it before stay root's."""
    if os.geteuid() != 0:
        yield open_folder
        return
    scene(open_folder / "a.tif", 40, 50)
    save_tiny_model(open_folder / "tiny.safetensors", fc_kernel=1)
    fcn_batch("plan", open_folder / "a.tif", "-m", open_folder / "tiny.safetensors")  # imports what a run needs
    open_folder.chmod(0o555)
    os.seteuid(NOBODY)
    try:
        yield open_folder
    finally:
        os.seteuid(0)


def in_one_line(result: Result, code: int, *values: object) -> None:
    """A refusal is one line, which names all `values`."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("fcn-batch: ", "Error: "))]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    assert all(str(value) in lines[0] for value in values), lines[0]


def tiff(path: Path, bands: int = 3, dtype: str = "uint8", **profile: Any) -> Path:
    return write_raster(path, noise(bands, 40, 50, dtype), **{"photometric": "MINISBLACK", **profile})


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def cut_off(path: Path) -> Path:
    scene(path, tiled=True, blockxsize=64, blockysize=64)
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def with_palette(path: Path) -> Path:
    tiff(path, 2, photometric="PALETTE")
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {7: (10, 20, 30, 255)})
    return path


INPUTS: dict[str, tuple[Callable[[Path], Path], str, dict[str, object]]] = {
    "no file": (lambda path: path, "input-missing", {}),
    "a folder": (lambda path: path.parent, "nothing-found", {}),
    "nothing in it": (lambda path: text(path, ""), "format-unknown", {}),
    "a text": (lambda path: text(path, "no picture\n"), "format-unknown", {}),
    "a head alone": (lambda path: text(path, "II*\0"), "format-unknown", {}),
    "cut off": (cut_off, "file-cut-off", {}),
    "one band": (lambda path: tiff(path, 1), "bands-unclear", {"bands": 1, "example": ", e.g. --bands 1,1,1"}),
    "two bands": (lambda path: tiff(path, 2), "bands-unclear", {"bands": 2, "example": ", e.g. --bands 1,2,2"}),
    "four bands": (lambda path: tiff(path, 4), "bands-unclear", {"bands": 4, "example": ", e.g. --bands 1,2,3"}),
    "a palette and more": (with_palette, "palette-unexpanded", {"names": "red, green, blue"}),
    **{
        dtype: (lambda path, dtype=dtype: tiff(path, dtype=dtype), "pixels-unsupported", {"dtype": dtype})  # type: ignore[misc]  # mypy knows no lambda with defaults
        for dtype in ("complex64", "float64", "uint32", "int8")
    },
    "16 bits without a white": (
        lambda path: tiff(path, dtype="uint16", photometric="RGB"), "values-unclear", {"dtype": "uint16"}
    ),
    "flattened": (
        lambda path: tiff(path, crs="EPSG:32633", transform=Affine(10, 0, 0, 0, 0, 0)), "transform-invalid", {}
    ),
}  # fmt: skip
"""What makes the input; code and fields of its refusal, beside the path."""


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_cannot_be_used(tmp_path: Path, model: Path, kind: str) -> None:
    """They are refused, and nothing in the folder is other than it was."""
    make, code, fields = INPUTS[kind]
    path = make(tmp_path / "a.tif")
    before = tree(tmp_path)
    refused(fcn_batch("segment", path, "-m", model, "-q"), code, path=path, **fields)
    assert tree(tmp_path) == before


def test_a_url(model: Path) -> None:
    url = "ftp://example.org/a.tif"
    refused(fcn_batch("segment", url, "-m", model, "-q"), "url-unsupported", place=url, scheme="ftp")


def damaged_scene(path: Path) -> tuple[Path, bytes]:
    """A raster whose last storage block, rows from 256 and columns from 320 on, is damaged; what it was before."""
    scene(path, tiled=True, blockxsize=64, blockysize=64, compress="deflate", interleave="pixel")
    whole = path.read_bytes()
    with rasterio.open(path) as dataset:
        offset, size = (int(dataset.get_tag_item(f"BLOCK_{w}_5_4", "TIFF", bidx=1)) for w in ("OFFSET", "SIZE"))
    status = path.stat()
    path.write_bytes(whole[: offset + 10] + b"\0" * (size - 20) + whole[offset + size - 10 :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path, whole


def test_a_damaged_block_is_told_by_a_map_that_only_looks_at_it(tmp_path: Path, model: Path) -> None:
    path, _ = damaged_scene(tmp_path / "a.tif")
    box = ["--bbox", "-12,24,-4,32"]  # rows and columns 128 to 255, with the halo to 383
    result = fcn_batch("segment", path, "-m", model, "-o", tmp_path / "out", "--on-error", "mask", *box)
    assert result.exit_code == 3, result.stderr
    report = json.loads((tmp_path / "out" / "a.run.json").read_text())
    assert report["unreadable"] == [{"row": 256, "col": 320, "height": 44, "width": 10}]
    assert (class_map(tmp_path / "out", "a")[128:256, 128:256] != NODATA).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_block_stops_the_run_and_what_is_done_is_kept(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    path, whole = damaged_scene(tmp_path / "a.tif")
    status = path.stat()
    result = fcn_batch("segment", path, "-m", model, "-q", "-o", tmp_path / "out", "--workers", workers)
    refused(result, "pixels-unreadable", path=path)
    assert capfd.readouterr() == ("", "")  # of worker processes, which write past this one's sys.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.partial"]
    if workers:
        return
    path.write_bytes(whole)  # the undamaged copy, with the same time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    segmented(path, "-m", model, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "a.run.json").read_text())
    assert report["timing"]["blocks_done_by_earlier_runs"] >= 1
    segmented(path, "-m", model, "-o", tmp_path / "fresh")
    assert output_bytes(tmp_path / "out", "a") == output_bytes(tmp_path / "fresh", "a")


# --- odd inputs that work ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_come_out_as_nodata(tmp_path: Path, model: Path, value: float) -> None:
    values = noise(3, 150, 140, "float32")
    values[1, 10:20, 30:50] = value
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    segmented(path, "-m", model, "--full-scale", "255")
    nodata = class_map(tmp_path, "a") == NODATA
    assert nodata[10:20, 30:50].all()
    assert nodata.sum() == 200


def test_a_raster_without_a_single_pixel_of_data(tmp_path: Path, model: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 150, 140), np.uint8), nodata=0, photometric="RGB")
    segmented(path, "-m", model)
    assert (class_map(tmp_path, "a") == NODATA).all()
    report = json.loads((tmp_path / "a.run.json").read_text())
    assert report["forward_passes_per_pixel"] == 0
    assert report["nodata_pixels"] == 150 * 140
    assert [entry["share"] for entry in report["classes"]] == [0.0] * 6
    with accept_pixel_space(), rasterio.open(tmp_path / "a.classes.tif") as dataset:
        assert (dataset.read(1) == NODATA).all()


def test_a_single_pixel(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 1, 1)
    segmented(path, "-m", model)
    assert class_map(tmp_path, "a").shape == (1, 1)
    assert class_map(tmp_path, "a")[0, 0] != NODATA


def test_no_place_on_the_earth_is_said_and_kept(tmp_path: Path, model: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 50), photometric="RGB")
    result = segmented(path, "-m", model)
    assert "a.tif: " in result.stderr
    with accept_pixel_space(), rasterio.open(tmp_path / "a.classes.tif") as dataset:
        assert dataset.crs is None
        assert dataset.transform == Affine.identity()
    assert len(json.loads((tmp_path / "a.run.json").read_text())["notes"]) >= 1


@pytest.mark.parametrize("transform", [Affine(10, 0, 5e5, 0, 10, 5e6), Affine(8, 6, 5e5, 6, -8, 5e6)])
def test_south_up_and_rotated_rasters_keep_their_place(tmp_path: Path, model: Path, transform: Affine) -> None:
    path = scene(tmp_path / "a.tif", 150, 140, crs="EPSG:32633", transform=transform)
    segmented(path, "-m", model)
    with rasterio.open(tmp_path / "a.classes.tif") as dataset:
        assert dataset.transform == transform
        assert dataset.crs == rasterio.CRS.from_epsg(32633)
    plain = scene(tmp_path / "b.tif", 150, 140)
    segmented(plain, "-m", model)
    assert (class_map(tmp_path, "a") == class_map(tmp_path, "b")).all()


# --- outputs, models, options: more of them in the tests of each ---------------------------------------------


BELOW_A_FILE = ("file", "file/deeper/still")
CONTENT = {"file": b"I am a file", "empty.safetensors": b"", "text.safetensors": b"not a model at all, but text",
           "cardless.safetensors": b"\x02\0\0\0\0\0\0\0{}"}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code", "value"),
    [
        *((["-o", "{folder}/" + name], 6, "{folder}/" + name) for name in BELOW_A_FILE),
        *((["-o", "{folder}/" + name], 2, "-o {folder}/" + name) for name in ("out.tif", "out.PNG", "out.zarr")),
        (["-m", "{folder}"], 5, "{folder}"),
        (["-m", "nameless"], 5, "nameless"),
        *(
            (["-m", f"{{folder}}/{name}.safetensors"], 5, f"{{folder}}/{name}.safetensors")
            for name in ("none", "empty", "text", "cardless", "damaged")
        ),
        (["--bands", "nir"], 2, "nir"),
        (["--bands", "1,2,"], 2, "1,2,"),
        (["--bands", "1,2"], 2, "got 2"),
        (["--bands", "1,2,9"], 2, "not 9"),
        (["--tile", "big"], 2, "big"),
        (["--tile", "-5"], 2, "-5"),
        (["--tile", "99999"], 2, "100000 px"),
        (["--tile", "99999", "--overlap", "32"], 2, "--memory"),
        (["--memory", "1MB"], 2, "1 MB"),
        (["--memory", "lots"], 2, "lots"),
        (["--precision", "fp16"], 2, "fp16"),
        (["--precision", "fp8"], 2, "fp8"),
        (["--threads", "0"], 2, "--threads 0"),
        (["--overlap", "600"], 2, "608"),
        (["--overlap", "-1"], 2, "-1"),
        (["--blend", "magic"], 2, "magic"),
        (["--full-scale", "0"], 2, "0.0"),
        (["--full-scale", "1e-320"], 2, "1e-320"),
        (["--device", "gpu"], 2, "gpu"),
        (["--workers", "-1"], 2, "-1"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:8786"], 2, "--scheduler"),
        (["--scheduler", "nonsense"], 2, "nonsense"),
        (["--scheduler", "ftp://127.0.0.1:1"], 2, "ftp://127.0.0.1:1"),
        (["--scheduler", ""], 2, "--scheduler"),
        (["--workers", "2", "--scheduler", ""], 2, "--scheduler"),
        (["--scheduler", "tcp://127.0.0.1:9"], 2, "tcp://127.0.0.1:9"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, model: Path, options: list[str], code: int, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.processes.crew._CONNECT_TIMEOUT_S", 1)
    path = scene(tmp_path / "a.tif", 40, 50)
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "damaged.safetensors").write_bytes(model.read_bytes()[:-100])
    before = tree(tmp_path)
    given = [word.format(folder=tmp_path) for word in options]
    result = fcn_batch("segment", path, "-q", *(() if "-m" in options else ("-m", model)), *given)
    in_one_line(result, code, value.format(folder=tmp_path))
    assert {n: s for n, s in tree(tmp_path).items() if ".partial" not in n} == before


def test_no_input_at_all() -> None:
    refused(fcn_batch("segment"), "no-input")


def test_a_folder_may_be_named_like_a_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out.tif").mkdir()
    segmented(scene(tmp_path / "a.tif", 40, 50), "-m", model, "-o", tmp_path / "out.tif")


@pytest.mark.parametrize("output", [True, False])
def test_folders_that_may_not_be_written(nobody: Path, output: bool) -> None:
    options = ("-o", nobody / "out") if output else ()
    before = tree(nobody)
    result = fcn_batch("segment", nobody / "a.tif", "-m", nobody / "tiny.safetensors", "-q", *options)
    in_one_line(result, 6, nobody / "out" if output else nobody, "-o DIR")
    assert tree(nobody) == before


def test_an_input_that_may_not_be_read(nobody: Path) -> None:
    os.seteuid(0)
    (nobody / "a.tif").chmod(0o600)
    os.seteuid(NOBODY)
    result = fcn_batch("segment", nobody / "a.tif", "-m", nobody / "tiny.safetensors", "-q")
    refused(result, "format-unknown", path=nobody / "a.tif", remedy="make it readable")


def test_a_full_disk_and_then_room(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene(tmp_path / "a.tif")
    write, done = ClassStore.write, []

    def limited(self: ClassStore, *arguments: Any) -> None:
        done.append(1)
        if len(done) > 4:
            raise OSError(28, "No space left on device")
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClassStore, "write", limited)
        result = fcn_batch("segment", path, "-m", model, "-o", tmp_path / "out", "-q")
    in_one_line(result, 6, tmp_path / "out", "No space left on device")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.partial"]
    segmented(path, "-m", model, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "a.run.json").read_text())
    assert report["timing"]["blocks_done_by_earlier_runs"] == 4  # also the one that was under way


@pytest.mark.parametrize(
    "target", ["fcn_batch.workflows.run.create_store", "fcn_batch.pipeline.core.journal.write_whole"]
)
def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device", "/some/file")

    path = scene(tmp_path / "a.tif", 40, 50)
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        result = fcn_batch("segment", path, "-m", model, "-q")
    in_one_line(result, 6, "/some/file: No space left on device")
    segmented(path, "-m", model)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_that_changes_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    changing = save_tiny_model(tmp_path / "m.safetensors", fc_kernel=1)

    def create_and_change(*arguments: Any) -> None:
        create_store(*arguments)
        save_tiny_model(changing, fc_kernel=1, seed=1)

    monkeypatch.setattr(run_module, "create_store", create_and_change)
    result = fcn_batch("segment", path, "-m", changing, "-q", "--workers", workers)
    in_one_line(result, 5, changing, "--restart")
    assert not (tmp_path / "a.run.json").exists()
