"""`--verbose`: what is logged, where it goes, and that it ends with the command."""

import logging
import os
import re
import sys
from pathlib import Path

import pytest

from fcn_batch.workflows.console.logs import LOG, heard, level_of_dask
from fcn_batch.workflows.processes.crew import silent
from tests.models import save_tiny_model
from tests.runs import fcn_batch, run_program, scene, small_blocks

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [\w.]+ (DEBUG|INFO|WARNING|ERROR) .*"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(autouse=True)
def as_before() -> None:
    """pytest's own handlers would let more be heard."""
    assert (LOG.level, LOG.handlers, level_of_dask()) == (logging.NOTSET, [], logging.CRITICAL)


def test_a_plan_is_logged_on_standard_error(tmp_path: Path, model: Path) -> None:
    """And an error is told as always."""
    path = scene(tmp_path / "a.tif", 40, 50)
    command = ("plan", path, "-m", model, "--json")
    quiet, told = fcn_batch(*command), fcn_batch(*command, "-v")
    assert (quiet.stderr, told.exit_code) == ("", 0)
    assert told.stdout.split('"facts"')[0] == quiet.stdout.split('"facts"')[0]
    lines = told.stderr.splitlines()
    assert [line for line in lines if not re.fullmatch(LINE, line)] == []
    assert "fcn_batch INFO fcn-batch " in lines[0]
    assert any(f"{path}: plan " in line for line in lines)
    assert "DEBUG" not in told.stderr
    assert (LOG.level, LOG.handlers) == (logging.NOTSET, [])
    failed = fcn_batch("plan", tmp_path / "none.tif", "-v")
    assert failed.exit_code == 4
    assert failed.stderr.splitlines()[-1].startswith("fcn-batch: ")
    assert LOG.handlers == []


def test_twice_tells_of_gdal_too(tmp_path: Path, model: Path) -> None:
    """GDAL's own messages come by rasterio's log."""
    command = [sys.executable, "-m", "fcn_batch", "plan", scene(tmp_path / "a.tif", 40, 50), "-m", model, "-vv"]
    told = run_program(command).stderr
    assert re.search(r" rasterio\.\S+ DEBUG .*GDAL", told)
    assert re.search(r" rasterio\.\S+ DEBUG CPLE_None in GDAL: GDALOpen", told)
    assert re.search(r" fcn_batch DEBUG .*cut=", told)
    assert "CPL_DEBUG" not in os.environ


def test_blocks_are_logged_also_where_the_progress_is_quiet(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    told = fcn_batch("segment", scene(tmp_path / "a.tif"), "-m", model, "-q", "--verbose")
    assert told.exit_code == 0
    assert sorted(int(k) for k in re.findall(r"a: block (\d+) of 9: \d+\.\d s", told.stderr)) == list(range(9))


def test_names_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with heard(1, "test"):
        LOG.info("a\x1b[31mred")
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert r"a\x1b[31mred" in said


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(text: str) -> int:
        written.append(text)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr.write", full)
    with heard(1, "test"):
        LOG.info("more")
    assert len(written) == 2


def test_dask_is_heard_only_with_it() -> None:
    import distributed  # sets its level

    log = logging.getLogger(distributed.__name__)
    with silent():
        assert {handler.level for handler in log.handlers} <= {logging.CRITICAL + 1}
    with heard(2, "test"), silent():
        assert level_of_dask() == log.level == logging.DEBUG
        assert all(handler.level <= logging.DEBUG for handler in log.handlers)
    assert log.level != logging.DEBUG


def test_workers_are_heard(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-m", "fcn_batch", "segment", scene(tmp_path / "a.tif", 40, 50), "-m", model]
    told = run_program([*command, "-q", "-v", "--workers", "1"])
    assert told.returncode == 0, told.stderr
    assert "distributed.scheduler" in told.stderr
