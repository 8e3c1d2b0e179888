"""Whatever is wrong: one line that names it and says what to do, the right exit code, and nothing left behind."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
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


def refused(result: Result, code: int, *needles: object) -> str:
    """The one line of a refusal that holds all needles."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("fcn-batch: ", "Error: "))]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    for needle in needles:
        assert str(needle) in lines[0]
    return lines[0]


def refuses(folder: Path, code: int, *needles: object, arguments: list[object]) -> None:
    """`segment ARGUMENTS` is refused, and nothing in `folder` is other than it was."""
    before = tree(folder)
    refused(fcn_batch("segment", *arguments, "-q"), code, *needles)
    assert tree(folder) == before


# --- the input -----------------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "none.tif"
    refuses(tmp_path, 4, f"{path} does not exist; check the name", arguments=[path, "-m", model])


def test_a_folder(tmp_path: Path, model: Path) -> None:
    refuses(tmp_path, 4, f"{tmp_path}: a folder with no raster in it", arguments=[tmp_path, "-m", model])


@pytest.mark.parametrize("text", ["", "no picture\n", "II*\0"])
def test_no_raster(tmp_path: Path, model: Path, text: str) -> None:
    path = tmp_path / "a.tif"
    path.write_text(text)
    refuses(tmp_path, 4, f"{path} cannot be opened as a raster", "gdal_translate", arguments=[path, "-m", model])


def test_a_url(tmp_path: Path, model: Path) -> None:
    url = "ftp://example.org/a.tif"
    refuses(tmp_path, 4, url, "URLs of ftp are not supported", "copy it to a file", arguments=[url, "-m", model])


def test_a_file_cut_off(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", tiled=True, blockxsize=64, blockysize=64)
    os.truncate(path, path.stat().st_size * 2 // 3)
    refuses(tmp_path, 4, path, "get a complete copy", arguments=[path, "-m", model])


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
    refused(result, 4, f"{path} cannot be decoded in rows ", "get an undamaged copy")
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


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_bands_that_do_not_fit(tmp_path: Path, model: Path, bands: int) -> None:
    path = write_raster(tmp_path / "a.tif", noise(bands, 40, 50), photometric="MINISBLACK")
    needles = (path, f"its {bands} bands are red, green, blue", "--bands 1,")
    refuses(tmp_path, 4, *needles, arguments=[path, "-m", model])


def test_a_palette_and_something_else(tmp_path: Path, model: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(2, 40, 50), photometric="PALETTE")
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {7: (10, 20, 30, 255)})
    refuses(tmp_path, 4, path, "palette", "gdal_translate -expand rgb IN OUT", arguments=[path, "-m", model])


@pytest.mark.parametrize("dtype", ["complex64", "float64", "uint32", "int8"])
def test_pixels_of_unsupported_types(tmp_path: Path, model: Path, dtype: str) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 50, dtype), photometric="MINISBLACK")
    refuses(tmp_path, 4, path, dtype, "gdal_translate -ot", arguments=[path, "-m", model])


def test_sixteen_bits_without_a_white(tmp_path: Path, model: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 50, "uint16"), photometric="RGB")
    refuses(tmp_path, 4, path, "uint16", "--full-scale", "65535", arguments=[path, "-m", model])
    segmented(path, "-m", model, "--full-scale", "200")


def test_a_transform_that_flattens_the_raster(tmp_path: Path, model: Path) -> None:
    transform = Affine(10, 0, 0, 0, 0, 0)
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 50), photometric="RGB", crs="EPSG:32633", transform=transform)
    refuses(tmp_path, 4, path, "maps the raster to a line", "gdal_edit", arguments=[path, "-m", model])


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
    assert "a.tif: the raster has no coordinate reference system" in result.stderr
    with accept_pixel_space(), rasterio.open(tmp_path / "a.classes.tif") as dataset:
        assert dataset.crs is None
        assert dataset.transform == Affine.identity()
    assert any(
        "no coordinate reference system" in n for n in json.loads((tmp_path / "a.run.json").read_text())["notes"]
    )


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


# --- the outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_folder_that_is_a_file(tmp_path: Path, model: Path, below: str) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    (tmp_path / "file").write_text("I am a file")
    folder = tmp_path / "file" / below
    refuses(
        tmp_path, 6, f"{folder}: cannot write outputs here", "with -o DIR", arguments=[path, "-m", model, "-o", folder]
    )


@pytest.mark.parametrize("name", ["out.tif", "out.PNG", "out.zarr"])
def test_an_output_that_is_named_like_a_file(tmp_path: Path, model: Path, name: str) -> None:
    path, output = scene(tmp_path / "a.tif", 40, 50), tmp_path / name
    refuses(tmp_path, 2, f"-o {output}: outputs go into a folder", arguments=[path, "-m", model, "-o", output])
    output.mkdir()
    segmented(path, "-m", model, "-o", output)


def test_an_output_folder_that_may_not_be_written(nobody: Path) -> None:
    options: list[object] = [nobody / "a.tif", "-m", nobody / "tiny.safetensors", "-o", nobody / "out"]
    needles = (f"{nobody / 'out'}: cannot write outputs here (Permission denied)", "choose another folder with -o DIR")
    refuses(nobody, 6, *needles, arguments=options)


def test_an_input_folder_that_may_not_be_written(nobody: Path) -> None:
    options: list[object] = [nobody / "a.tif", "-m", nobody / "tiny.safetensors"]
    needles = (
        f"{nobody}: cannot write outputs here (Permission denied)",
        "choose a folder for the outputs with -o DIR",
    )
    refuses(nobody, 6, *needles, arguments=options)


def test_an_input_that_may_not_be_read(nobody: Path) -> None:
    os.seteuid(0)
    (nobody / "a.tif").chmod(0o600)
    os.seteuid(NOBODY)
    options: list[object] = [nobody / "a.tif", "-m", nobody / "tiny.safetensors"]
    refuses(nobody, 4, f"{nobody / 'a.tif'}: Permission denied; make it readable", arguments=options)


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
    refused(result, 6, f"{tmp_path / 'out'}: No space left on device", "make room", "run the same command again")
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
    refused(result, 6, "/some/file: No space left on device", "make room")
    segmented(path, "-m", model)


# --- the model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("none.safetensors", None, "no such model file"),
        ("a.safetensors", b"", "not a safetensors file (0 bytes)"),
        ("a.safetensors", b"not a model at all, but text", "not a safetensors file (28 bytes)"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "no fcn-batch model card"),
        ("nameless", None, "no embedded model has this name"),
    ],
)
def test_no_model(tmp_path: Path, name: str, content: bytes | None, needle: str) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    wanted = tmp_path / name if "." in name else name
    refuses(tmp_path, 5, f"{wanted}: ", needle, arguments=[path, "-m", wanted])


def test_a_folder_for_a_model(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    refuses(tmp_path, 5, f"{tmp_path}: cannot read the model file: Is a dir", arguments=[path, "-m", tmp_path])


def test_a_damaged_model(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    (tmp_path / "m.safetensors").write_bytes(model.read_bytes()[:-100])
    needles = (tmp_path / "m.safetensors", "not a whole safetensors file", "get the file again")
    refuses(tmp_path, 5, *needles, arguments=[path, "-m", tmp_path / "m.safetensors"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_that_changes_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    changing = save_tiny_model(tmp_path / "m.safetensors", fc_kernel=1)

    def create_and_change(*arguments: Any) -> None:
        create_store(*arguments)
        save_tiny_model(changing, fc_kernel=1, seed=1)

    monkeypatch.setattr(run_module, "create_store", create_and_change)
    result = fcn_batch("segment", path, "-m", changing, "-q", "--workers", workers)
    refused(result, 5, f"{changing}: the model file changed during the run: sha256 was ", "--restart")
    assert not (tmp_path / "a.run.json").exists()


# --- the options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "needles"),
    [
        (["--bands", "nir"], ["--bands nir: ", "has no band of this name", "or give its number"]),
        (["--bands", "1,2,"], ["'1,2,' is not a list"]),
        (["--bands", "1,2"], ["--bands 1,2: the model wants 3 bands", "got 2"]),
        (["--bands", "1,2,9"], ["has bands 1 to 3, not 9"]),
        (["--tile", "big"], ["'big' is neither auto nor a number of pixels"]),
        (["--tile", "-5"], ["--tile -5: give a positive number"]),
        (["--tile", "99999"], ["--memory: ", " is not enough for each process", "tiles of 100000 px"]),
        (["--tile", "99999", "--overlap", "32"], ["--memory: ", " is not enough for each process", "give more"]),
        (["--memory", "1MB"], ["--memory: 1 MB is not enough for each process", " MB would be", "fewer --workers"]),
        (["--memory", "lots"], ["'lots' is not an amount of memory like 4GB or 500MB"]),
        (["--precision", "fp16"], ["--precision fp16: for GPUs; give fp32 or bf16 on the CPU"]),
        (["--precision", "fp8"], ["'fp8' is not one of"]),
        (["--threads", "0"], ["--threads 0: give 1 to 4 on this machine of 1 CPUs"]),
        (["--overlap", "600"], ["--overlap 600 (rounded up to 608): at most half of the tile of 1024"]),
        (["--overlap", "-1"], ["--overlap -1: give 0 or more pixels"]),
        (["--blend", "magic"], ["'magic' is not one of"]),
        (["--full-scale", "0"], ["--full-scale 0.0: give a positive number"]),
        (["--full-scale", "1e-320"], ["--full-scale 1e-320: too small", "give the pixel value that is white"]),
        (["--device", "gpu"], ["--device gpu: not a device"]),
        (["--workers", "-1"], ["--workers -1: give auto, 0"]),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:8786"], ["--workers and --scheduler exclude each other"]),
        (["--scheduler", "nonsense"], ["--scheduler nonsense: not the address of a scheduler", "tcp://HOST:PORT"]),
        (["--scheduler", "ftp://127.0.0.1:1"], ["--scheduler ftp://127.0.0.1:1: not the address of a scheduler"]),
        (["--scheduler", ""], ["--scheduler : not the address of a scheduler"]),
        (["--workers", "2", "--scheduler", ""], ["--workers and --scheduler exclude each other"]),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, model: Path, options: list[str], needles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.processes.crew._CONNECT_TIMEOUT_S", 1)
    path = scene(tmp_path / "a.tif", 40, 50)
    before = tree(tmp_path)
    refused(fcn_batch("segment", path, "-m", model, "-q", *options), 2, *needles)
    assert {n: s for n, s in tree(tmp_path).items() if ".partial" not in n} == before


def test_nobody_listens_at_the_scheduler(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.processes.crew._CONNECT_TIMEOUT_S", 1)
    path = scene(tmp_path / "a.tif", 40, 50)
    address = "tcp://127.0.0.1:9"
    result = fcn_batch("segment", path, "-m", model, "-q", "--scheduler", address)
    refused(result, 2, f"--scheduler {address}: no Dask scheduler answers there")


def test_no_input_at_all() -> None:
    refused(fcn_batch("segment"), 2, "no input; give files")
