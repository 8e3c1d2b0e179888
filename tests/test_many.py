"""Many inputs in one command: patterns, lists, one that is bad, and what is told of each."""

import io
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fcn_batch.workflows.inputs.many import inputs_of
from tests.errors import error_of, refused, refuses
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import class_map, fcn_batch, scene, segmented
from tests.twolanes import command, undisturbed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_patterns_that_no_shell_expanded(tmp_path: Path) -> None:
    a, b, deep, _, _ = files(tmp_path, "a.tif", "b.tif", "more/deep/c.tif", ".hidden.tif", "notes.txt")
    (tmp_path / "folder.tif").mkdir()
    assert inputs_of([tmp_path / "*.tif"], None) == (a, b)
    assert inputs_of([tmp_path / "**" / "*.tif"], None) == (a, b, deep)
    assert inputs_of([tmp_path / "[b-z].tif", b, a], None) == (b, a), "each once"


def test_folders_of_rasters_and_slides(tmp_path: Path) -> None:
    """One file of each: of MIRAX not the parts in the folder of its name."""
    a, b, *_ = files(tmp_path, "a.jp2", "b.TIF", ".c.tif", "b.classes.tif", "b.run.json", "deep/d.tif", "notes/n.txt")
    assert inputs_of([tmp_path], None) == (a, b)
    with refuses("nothing-found", path=tmp_path / "notes"):
        inputs_of([tmp_path / "notes"], None)
    slides = files(tmp_path / "slides", "a.svs", "b.NDPI", "c.mrxs", "d.scn", "e.ome.tif")
    files(tmp_path / "slides", "c/Slidedat.ini", "c/Data0000.dat")
    assert inputs_of([tmp_path / "slides"], None) == tuple(slides)


def test_maps_that_lie_beside_their_inputs_are_no_inputs(tmp_path: Path) -> None:
    """A file with the name of a pattern is meant itself."""
    a, made, _ = files(tmp_path, "a.tif", "a.classes.tif", "a.run.json")
    files(tmp_path, "a.classes.png", "a.classes.cog.tif")
    assert inputs_of([tmp_path / "*.tif"], None) == inputs_of([tmp_path], None) == (a,)
    assert inputs_of([made], None) == (made,), "named"
    odd, _ = files(tmp_path, "a[1].tif", "a1.tif")
    assert inputs_of([odd], None) == (odd,)


def test_a_list_of_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, far = files(tmp_path, "in/a.tif", "in/b b.tif", "far/c.tif")
    text = f"\ufeff# tonight\r\na.tif\r\n\n  b b.tif  \n{far}\n"
    (tmp_path / "in" / "list.txt").write_text(text, "utf-8")
    assert inputs_of([], tmp_path / "in" / "list.txt") == (a, b, far)
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr("sys.stdin", io.StringIO("b b.tif\n../far/*.tif\n"))
    assert inputs_of([Path("a.tif")], Path("-")) == (Path("a.tif"), Path("b b.tif"), Path("../far/c.tif"))


def test_what_names_no_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for given, listed, code in (
        ([], None, "no-input"),
        ([], tmp_path / "empty.txt", "no-input"),
        ([], tmp_path / "bytes.txt", "list-unreadable"),
        ([], tmp_path / "none.txt", "list-unreadable"),
    ):
        with refuses(code):
            inputs_of(given, listed)
    with refuses("nothing-found", path=tmp_path / "*.tif"):
        inputs_of([tmp_path / "*.tif"], None)


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, model: Path) -> None:
    for name in ("a", "c", "d"):
        scene(tmp_path / f"{name}.tif", 70, 60)
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:300])
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    result = fcn_batch("segment", tmp_path / "*.tif", tmp_path / "e.tif", "-m", model, "-o", out, "--summary", summary)
    assert result.exit_code == 4, result.stderr
    assert [Path(line).name for line in result.stdout.splitlines()] == [
        f"{name}.{kind}" for name in "acd" for kind in ("classes.zarr", "classes.tif", "run.json")
    ]
    told = json.loads(summary.read_text())
    assert {key: told[key] for key in ("inputs", "waiting", "done", "part", "holes", "failed")} == {
        "inputs": 5, "waiting": 0, "done": 3, "part": 0, "holes": 0, "failed": 2,
    }  # fmt: skip
    assert [(Path(one["path"]).name, one["status"], one["code"], one["pixels"]) for one in told["outcomes"]] == [
        ("a.tif", "done", 0, 4200), ("b.tif", "failed", 4, None), ("c.tif", "done", 0, 4200),
        ("d.tif", "done", 0, 4200), ("e.tif", "failed", 4, None),
    ]  # fmt: skip
    error = error_of(result)
    assert (error.code, error.fields["count"], error.fields["inputs"]) == ("file-cut-off", 2, 5)
    lines = result.stderr.splitlines()
    assert [line.split()[1] for line in lines[-6:-1]] == ["done", "done", "done", "failed", "failed"]
    alone = segmented(tmp_path / "c.tif", "-m", model, "-o", tmp_path / "alone")
    assert "inputs" not in alone.stderr
    assert (class_map(out, "c") == class_map(tmp_path / "alone", "c")).all()


def test_what_is_wrong_for_all_ends_at_the_first(tmp_path: Path, model: Path) -> None:
    inputs = [scene(tmp_path / f"{name}.tif", 70, 60) for name in "ab"]
    for options, code in ((("-m", tmp_path / "none.toml"), 5), (("-m", model, "--bands", "1,2"), 2)):
        result = fcn_batch("segment", *inputs, *options, "-o", tmp_path / "out")
        assert result.exit_code == code
        assert "the others go on" not in result.stderr


def test_a_command_that_is_asked_to_end_tells_what_is_done(tmp_path: Path) -> None:
    base = undisturbed(tmp_path, 3000)
    scene(tmp_path / "0.tif", 70, 60)
    summary = tmp_path / "summary.json"
    words = [*command(base, tmp_path / "out", "--summary", str(summary)), str(tmp_path / "b.tif")]
    words.insert(words.index("segment") + 1, str(tmp_path / "0.tif"))
    scene(tmp_path / "b.tif", 70, 60)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + PATIENCE_S
        while not list((tmp_path / "out" / "a.partial" / "receipts").glob("*.json")):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        told: dict[str, Any] = json.loads(summary.read_text())
        assert (told["done"], told["waiting"]) == (1, 2), "true also if it is killed now"
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 75
    assert [Path(line).name for line in out.splitlines()] == ["0.classes.zarr", "0.classes.tif", "0.run.json"]
    assert "2 more not begun or not finished" in err


def test_what_is_refused_before_anything_is_made(tmp_path: Path, model: Path) -> None:
    """A summary that cannot be written, two inputs of one name, a priority of what is no mosaic."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        scene(tmp_path / folder / "a.tif", 70, 60)
    path, summary = tmp_path / "one" / "a.tif", tmp_path / "no" / "s.json"
    command = ["segment", "-m", model, "-o", tmp_path / "out"]
    refused(fcn_batch(*command, path, "--summary", summary), "summary-unwritable", path=summary)
    assert fcn_batch(*command, tmp_path / "*" / "a.tif").exit_code == 2
    refused(fcn_batch(*command, path, "--priority", "date"), "option-needs", value="date")
    assert not (tmp_path / "out").exists()
