"""Folders that are watched: what is taken and when, what is told, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.inputs import watch
from fcn_batch.workflows.inputs.watch import arrivals
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import class_map, fcn_batch, scene, segmented

Looks = Callable[..., list[list[str]]]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Looks:
    """What is taken at each look, if before each of them something is done in the folder."""

    def taken(*before: Callable[[], object], notes: list[str] | None = None) -> list[list[str]]:
        stop, found = Stop(), [list[str]() for _ in before]
        rounds = iter(enumerate(before))
        current = -1

        def waited(_stop: Stop) -> bool:
            nonlocal current
            current, act = next(rounds, (-1, None))
            if act is None:
                return False
            act()
            return True

        monkeypatch.setattr(watch, "_waited", waited)
        for path in arrivals(tmp_path, stop, (notes if notes is not None else []).append):
            found[current].append(path.name)
        return found

    return taken


def nothing() -> None:
    pass


def test_a_raster_is_taken_once_it_lies_still(tmp_path: Path, looks: Looks) -> None:
    path = tmp_path / "a.tif"
    found = looks(
        lambda: path.write_bytes(b"1"),
        lambda: path.write_bytes(b"12"),
        nothing,
        nothing,
        lambda: path.write_bytes(b"1234"),
        nothing,
        lambda: os.utime(path, ns=(0, 0)),  # another file of the same size
        nothing,
    )
    assert found == [[], [], ["a.tif"], [], [], ["a.tif"], [], ["a.tif"]]


def test_what_lies_there_before_is_taken_in_order(tmp_path: Path, looks: Looks) -> None:
    for name in ("b.TIF", "a.jp2", ".c.tif", "a.tif.aux.xml", "notes.txt"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "lost.tif").symlink_to(tmp_path / "nowhere.tif")
    assert looks(nothing, nothing) == [["a.jp2", "b.TIF"], []]


def test_a_folder_that_is_lost_is_waited_for(tmp_path: Path, looks: Looks) -> None:
    (tmp_path / "a.tif").write_bytes(b"1")
    away, notes = tmp_path.with_name("away"), list[str]()
    found = looks(
        nothing,
        lambda: tmp_path.rename(away),
        nothing,
        lambda: away.rename(tmp_path),
        lambda: (tmp_path / "b.tif").write_bytes(b"1"),
        nothing,
        notes=notes,
    )
    assert found == [["a.tif"], [], [], [], [], ["b.tif"]]
    assert [note for note in notes if "waited for" in note] == [notes[1]], "told once"
    with pytest.raises(InputError, match=r"--watch .*none: cannot be read"):
        next(arrivals(tmp_path / "none", Stop(), notes.append))


def test_it_ends_when_asked_also_between_two_rasters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.01)
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(b"1")
    stop = Stop()
    found: Iterator[Path] = arrivals(tmp_path, stop, lambda _: None)
    assert next(found).name == "a.tif"
    stop.request()
    assert list(found) == []


@pytest.mark.parametrize(
    "words", ["--watch IN", "--watch IN -o IN/out/..", "--watch IN -o OUT IN/a.tif", "--watch IN -o OUT --part 1/2"]
)
def test_what_does_not_go_together(tmp_path: Path, words: str) -> None:
    scene(tmp_path / "a.tif", 70, 60)
    told = "give one of them" if "OUT" in words else "give another folder with -o"
    result = fcn_batch("segment", *words.replace("IN", str(tmp_path)).replace("OUT", str(tmp_path / "out")).split())
    assert (result.exit_code, told in result.stderr) == (2, True)


def test_a_bad_name_that_comes_first_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    (tmp_path / "in").mkdir()
    long, good = tmp_path / "in" / f"{'a' * 245}.tif", scene(tmp_path / "in" / "b.tif", 70, 60)
    long.write_bytes(good.read_bytes())
    monkeypatch.setattr("fcn_batch.workflows.segment.arrivals", lambda *_: iter([long, good]))
    result = fcn_batch("segment", "--watch", tmp_path / "in", "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "1 of 2 inputs has a problem" in result.stderr
    assert (tmp_path / "out" / "b.run.json").exists()


def test_a_watched_folder(tmp_path: Path) -> None:
    """A real one: a raster that lies there, one written in two pieces, one that is bad and then mended."""
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    folder, out, summary = tmp_path / "in", tmp_path / "out", tmp_path / "summary.json"
    folder.mkdir()
    rasters = {name: scene(tmp_path / f"{name}.tif", 70, 60).read_bytes() for name in ("a", "b", "c")}
    (folder / "a.tif").write_bytes(rasters["a"])
    shutil.copy(folder / "a.tif", folder / "a.jp2")  # what would have the outputs of a.tif
    words = ["segment", "--watch", folder, "-m", model, "-o", out, "--summary", summary, "--overwrite"]
    run = subprocess.Popen(
        [sys.executable, "-m", "fcn_batch", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def until(**wanted: int) -> dict[str, object]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told: dict[str, object] = json.loads(summary.read_text()) if summary.exists() else {}
            if {key: told.get(key) for key in wanted} == wanted:
                return told
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline, told
            time.sleep(0.1)

    try:
        until(done=1, failed=1)
        half = len(rasters["b"]) // 2
        with (folder / "b.tif").open("wb") as file:
            file.write(rasters["b"][:half])
            file.flush()
            (folder / "c.tif").write_bytes(rasters["c"][:300])
            time.sleep(1.5 * watch.LOOK_EVERY_S)
            file.write(rasters["b"][half:])
        until(inputs=4, done=2, failed=2)
        (folder / "c.tif").write_bytes(rasters["c"])
        (folder / "a.tif").unlink()
        told = until(inputs=4, done=3, failed=1, waiting=0)
        run.send_signal(signal.SIGTERM)
        stdout, stderr = run.communicate(timeout=PATIENCE_S)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 2, stderr
    assert "1 of 4 inputs has a problem" in stderr
    assert "would both be written as a.*" in stderr
    assert "Traceback" not in stderr
    assert [Path(line).name for line in stdout.splitlines() if "run.json" in line].count("b.run.json") == 1
    assert told == json.loads(summary.read_text())
    segmented(*(tmp_path / f"{name}.tif" for name in rasters), "-m", model, "-o", tmp_path / "alone")
    assert all((class_map(out, name) == class_map(tmp_path / "alone", name)).all() for name in rasters)
