"""A few damaged files of each kind, given to the real program; `python -m tests.faults.fuzz` gives hundreds."""

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.ground import footprint
from fcn_batch.workflows.blocks.mend import mended
from tests.faults import mutate
from tests.faults.fuzz import CODES, MOST_BYTES, Result, judge
from tests.patience import PATIENCE_S
from tests.rasters import noise, write_raster
from tests.runs import fcn_batch

SEEDS = {"raster": "55:62", "model": "0:4", "factory": "0:2", "staging": "8:13", "store": "0:3", "validate": "0:3"}
"""Among them those that found something."""


@pytest.mark.parametrize("target", SEEDS)
def test_damaged_files_end_with_a_code_and_a_line(target: str) -> None:
    """In a program of its own: a process that has used torch already cannot be forked safely."""
    command = [sys.executable, "-m", "tests.faults.fuzz", "--json", "--seeds", SEEDS[target], "--targets", target]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment)
    assert done.stdout, done.stderr
    results = json.loads(done.stdout)
    first, behind = map(int, SEEDS[target].split(":"))
    assert len(results) == behind - first
    assert [result for result in results if result["complaints"]] == []


def judged(code: int = 4, stderr: str = "fcn-batch: no\n", seconds: float = 1.0, peak: int = 2**20) -> list[str]:
    result = Result("target", 0, code, seconds, peak, stderr)
    judge(result)
    return result.complaints


def test_the_judge_complains_of_what_is_wrong() -> None:
    assert {0, 2, 3, 4, 5, 6, 7, 8, 9, 75} == CODES
    assert judged() == judged(0, "") == []
    assert all(judged(code=bad) for bad in (1, -11, 99))
    assert all(judged(stderr=bad) for bad in ("", "a\nb\n", "Traceback (most recent call last)", "fcn-batch: \x1b[31m"))
    assert judged(seconds=61.0)
    assert judged(peak=MOST_BYTES + 1)


WATCHED = """
import os, sys, time
from pathlib import Path
from tests.faults.fuzz import run_apart

def eat():
    eaten = bytearray(2**30)
    eaten[::4096] = b"x" * len(eaten[::4096])
    time.sleep(60)

def fail():
    raise ValueError

actions = [lambda: time.sleep(60), eat, os.abort, fail, lambda: sys.exit(7), time.time]
ended = [run_apart(action, Path(sys.argv[1]), 20 if action is eat else 2, 2**30) for action in actions]
print([code for code, _, _ in ended], ended[1][2] > 2**30)
"""


def test_runs_apart_are_watched(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.stdout.strip() == "[-9, -9, -6, 99, 7, 0] True", done.stderr


def test_the_same_seed_damages_alike_and_another_does_not(tmp_path: Path) -> None:
    data = write_raster(tmp_path / "a.tif", noise(3, 40, 50)).read_bytes()
    for mutation in (mutate.tiff, mutate.bytes_of):
        made = [mutation(data, random.Random(seed)) for seed in (*range(20), *range(20))]  # noqa: S311
        assert made[:20] == made[20:]
        assert len(set(made)) > 15
    entries = [struct.unpack_from("<HHII", data, at) for at in mutate._entries(data)]
    tags = {entry[0]: entry[3] for entry in entries}
    assert (tags[256], tags[257], tags[277]) == (50, 40, 3)


# what the fuzzer found


def test_a_place_too_small_to_be_told_has_no_footprint() -> None:
    tiny = GeoReference("EPSG:4326", (1e-100, 0, -20, 0, -1e-100, 40))
    assert footprint(tiny, Size(100, 140)) is None


@pytest.mark.parametrize(
    "report", ['{"a":[' * 50_000, "[]", "5", '{"complete": true}', '{"complete": true, "plan": 5}']
)
def test_reports_that_are_none(tmp_path: Path, report: str) -> None:
    (tmp_path / "a.run.json").write_text(report)
    for command in (
        ("validate", tmp_path),
        ("export", tmp_path / "a.run.json", "--to", "csv", "-o", tmp_path / "a.csv"),
    ):
        result = fcn_batch(*command, "-q")
        assert result.exit_code in (4, 9), result.stderr
        assert result.stderr.count("\n") == 1


def make(path: Path) -> None:
    """A store of one array of pixels and one of coordinates."""
    for folder in ("classes", "y/c"):
        (path / folder).mkdir(parents=True)
    for name, of in (("", "all"), ("classes", "classes"), ("y", "y")):
        (path / name / "zarr.json").write_text(f'{{"of": "{of}"}}')
    (path / "y" / "c" / "0").write_bytes(b"123")


def with_pixels(path: Path) -> Path:
    make(path)
    (path / "classes" / "c" / "0").mkdir(parents=True)
    (path / "classes" / "c" / "0" / "0").write_bytes(b"pixels")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("file", ["zarr.json", "classes/zarr.json", "y/zarr.json", "y/c/0"])
@pytest.mark.parametrize("damage", [b"{", b'{"of": "another"}', b"\xff", b"[" * 50_000, None])
def test_changed_metadata_are_made_again_and_pixels_are_kept(tmp_path: Path, file: str, damage: bytes | None) -> None:
    store = with_pixels(tmp_path / "store")
    whole = contents(store)
    if damage is None:
        (store / file).unlink()
    else:
        (store / file).write_bytes(damage)
    assert mended(store, make)
    assert contents(store) == whole
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


def test_whole_metadata_are_left_alone_gathered_or_not(tmp_path: Path) -> None:
    store = with_pixels(tmp_path / "store")
    (store / "zarr.json").write_text('{"of": "all", "consolidated_metadata": {"metadata": {}}}')
    before = store.stat().st_ino
    assert not mended(store, make)
    assert store.stat().st_ino == before
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("link", ["classes", "classes/c", "y", "."])
def test_links_out_of_a_store_are_not_followed(tmp_path: Path, link: str) -> None:
    store, outside = with_pixels(tmp_path / "store"), tmp_path / "outside"
    (store / link).rename(outside)
    (store / link).parent.mkdir(exist_ok=True)
    Path(os.path.normpath(store / link)).symlink_to(outside)
    kept = contents(outside)
    if link == "classes/c":
        (store / "zarr.json").write_text("{}")
    assert mended(store, make)
    assert contents(outside) == kept
    assert not any(one.is_symlink() for one in (store, *store.rglob("*")))
