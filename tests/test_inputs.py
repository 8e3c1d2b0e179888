"""`--verify-input`: an input is what is in its files, whatever their times say, and as checksum files say."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fcn_batch.pipeline.core.errors import InputError, MismatchError
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows import run as run_module
from fcn_batch.workflows.inputs.identity import check_sums, identify
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.runs import fcn_batch, scene, segmented, small_blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def flip(path: Path) -> None:
    """Change a byte in the middle; size and times stay."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checked(path: Path) -> None:
    info = inspect(path)
    check_sums(info, identify(info, hashed=True))


def planned(path: Path, model: Path, *options: str) -> dict[str, Any]:
    result = fcn_batch("plan", path, "-m", model, "--json", *options)
    assert result.exit_code == 0, result.stderr
    files: dict[str, Any] = json.loads(result.stdout)["input"]
    return files


def test_a_copy_is_the_same_input_and_a_flipped_byte_another_one(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    by_time, by_content = planned(path, model), planned(path, model, "--verify-input")
    assert by_time["files"][0]["sha256"] is None
    (known,) = by_content["files"]
    assert {key: value for key, value in known.items() if value is not None} == {
        "name": "a.tif",
        "bytes": path.stat().st_size,
        "sha256": digest(path),
    }
    os.utime(path, ns=(0, 10**18))
    assert planned(path, model) != by_time
    assert planned(path, model, "--verify-input") == by_content
    now = planned(path, model)
    flip(path)
    assert planned(path, model) == now, "time and size say nothing"
    assert planned(path, model, "--verify-input") != by_content


def test_files_beside_the_raster_are_hashed_too(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    shutil.copy(path, tmp_path / "a.tif.msk")
    identity = identify(inspect(path), hashed=True)
    assert [(file.name, file.sha256) for file in identity.files] == [
        ("a.tif", digest(path)),
        ("a.tif.msk", digest(path)),
    ]
    assert identity.hashed
    assert not identify(inspect(path)).hashed


@pytest.mark.parametrize("sums", ["a b.tif.sha256", "SHA256SUMS"])
@pytest.mark.parametrize("mode", [[], ["--binary"]])
def test_what_sha256sum_wrote_must_agree(tmp_path: Path, sums: str, mode: list[str]) -> None:
    path = scene(tmp_path / "a b.tif", 50, 60)
    (tmp_path / "z.txt").write_text("other")
    names = ["z.txt", "./a b.tif" if sums == "SHA256SUMS" else "a b.tif"]
    told = subprocess.run(["sha256sum", *mode, *names], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / sums).write_text(told.stdout)
    checked(path)
    before = digest(path)
    flip(path)
    with refuses("checksum-differs", path=path, expected=before, found=digest(path), sums=sums):
        checked(path)


def test_names_with_backslashes_and_newlines_are_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    path = scene(tmp_path / "a\\n b.tif", 50, 60)
    told = subprocess.run(["sha256sum", path.name], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert told.startswith("\\")
    (tmp_path / "SHA256SUMS").write_text(told)
    checked(path)
    flip(path)
    with refuses("checksum-differs", sums="SHA256SUMS"):
        checked(path)


@pytest.mark.parametrize("form", ["{}", "{}\n", "{}  a.tif\r\n", "# comment\n{} *a.tif\n"])
def test_other_forms_of_a_checksum_file(tmp_path: Path, form: str) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    sums = tmp_path / "a.tif.sha256"
    sums.write_text(form.format(digest(path).upper()))
    checked(path)
    sums.write_text(form.format("0" * 64))
    with refuses("checksum-differs", sums="a.tif.sha256", found=digest(path)):
        checked(path)


def test_a_checksum_file_that_says_nothing_of_the_raster(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  b.tif\n")  # of other files only
    checked(path)
    for text in ("", f"{'0' * 64}  b.tif\n", f"{'0' * 63}  a.tif\n", "\0\xff"):
        (tmp_path / "a.tif.sha256").write_text(text)
        with refuses("checksum-missing", path=path.with_name("a.tif.sha256")):
            checked(path)


def test_the_command_refuses_a_damaged_input(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    (tmp_path / "a.tif.sha256").write_text(f"{digest(path)}  a.tif\n")
    flip(path)
    for command in ("plan", "segment"):
        result = fcn_batch(command, path, "-m", model, "--verify-input")
        refused(result, "checksum-differs", path=path, sums="a.tif.sha256")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.tif", "a.tif.sha256"]


def test_a_raster_that_changes_during_the_run_is_noticed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    path, look = scene(tmp_path / "a.tif"), run_module._refuse_changed_input

    def changed(*arguments: Any) -> None:
        flip(path)
        look(*arguments)

    def again(*options: str) -> Result:
        return fcn_batch("segment", path, "-m", model, "-q", *options)

    monkeypatch.setattr(run_module, "_refuse_changed_input", changed)
    result = again("--verify-input")
    assert result.exit_code == InputError.exit_code
    assert "the raster changed during the run" in result.stderr
    assert not (tmp_path / "a.run.json").exists()
    monkeypatch.undo()
    small_blocks(monkeypatch)
    result = again("--verify-input")
    assert result.exit_code == MismatchError.exit_code
    assert "input.files.0.sha256: " in result.stderr
    assert "--allow-mixed" not in result.stderr
    flip(path)
    os.utime(path)
    assert again("--verify-input").exit_code == 0, "the old bytes are back, at another time"


def test_verify_looks_at_the_content_too(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    segmented(path, "-m", model, "-q", "--verify-input")
    os.utime(path)
    assert fcn_batch("verify", tmp_path / "a.run.json", "-q").exit_code == 0
    before = digest(path)
    flip(path)
    result = fcn_batch("verify", tmp_path / "a.run.json", "-q")
    assert result.exit_code == InputError.exit_code
    assert before in result.stderr
    assert digest(path) in result.stderr
    assert "with its time" not in result.stderr
