"""Runs that are asked to end do so in order, and go on where they ended (G8); a log that fails ends none."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.patience import PATIENCE_S
from tests.runs import class_map, output_bytes, run_program
from tests.twolanes import command, undisturbed

BLOCKS = 94
"""Of the raster, two lanes of 47: so many that a run is not over before it gets its signal."""


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """A run hears what the tests do not ignore: they may be in the background, or under nohup."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("base"), 6000)


def begun(words: list[str], out: Path, blocks: int = 5) -> "subprocess.Popen[str]":
    """A run, in a process group of its own, that has finished some blocks."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (out / "a.partial").exists() or len(list((out / "a.partial" / "receipts").glob("*.json"))) < blocks:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def check_that_it_goes_on(base: Path, out: Path) -> None:
    """With the same command, from where it ended, to the same bytes."""
    receipts = out / "a.partial" / "receipts"
    done = {path.name: path.stat().st_mtime_ns for path in receipts.glob("*.json")}
    assert 5 <= len(done) < BLOCKS
    assert not list((out / "a.partial" / "claims").glob("[!.]*")), "claims were given up"
    result = run_program(command(base, out))
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "a.run.json").read_bytes())["timing"]["blocks_done_by_earlier_runs"] == len(done)
    assert np.array_equal(class_map(out, "a"), class_map(base / "reference", "a"))
    plans = [json.loads((folder / "a.run.json").read_bytes())["plan"] for folder in (out, base / "reference")]
    if plans[0] == plans[1]:  # with workers the segments are others, and stand in the attributes
        assert output_bytes(out, "a") == output_bytes(base / "reference", "a")


@pytest.mark.parametrize(
    ("number", "who", "workers"),
    [
        (signal.SIGTERM, "run", "0"),
        pytest.param(signal.SIGUSR1, "run", "0", marks=pytest.mark.faults),
        pytest.param(signal.SIGHUP, "run", "0", marks=pytest.mark.faults),
        pytest.param(signal.SIGINT, "run", "0", marks=pytest.mark.faults),
        pytest.param(signal.SIGTERM, "run", "2", marks=pytest.mark.faults),
        pytest.param(signal.SIGTERM, "all", "2", marks=pytest.mark.faults),
        (signal.SIGINT, "all", "2"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_run_drains_and_goes_on(base: Path, tmp_path: Path, number: signal.Signals, who: str, workers: str) -> None:
    code = 130 if number == signal.SIGINT else 75
    with begun(command(base, tmp_path, "--workers", workers), tmp_path) as process:
        send = os.killpg if who == "all" else os.kill  # to all: as Ctrl-C does, and SLURM at the end of a job's time
        send(process.pid, number)
        told = process.communicate(timeout=PATIENCE_S)[1].splitlines()
    assert process.returncode == code, told
    assert any(line.startswith(f"{number.name}: finishing the blocks under way") for line in told), told
    last = (
        "interrupted; run the same"
        if code == 130
        else f"stopped by {number.name}; finished blocks are kept: run the same"
    )
    assert told[-1] == f"fcn-batch: {last} command again to go on"
    assert "Traceback" not in "\n".join(told)
    check_that_it_goes_on(base, tmp_path)


@pytest.mark.faults
def test_ctrl_c_while_workers_start(base: Path, tmp_path: Path) -> None:
    """They hear it too, long before they could be told not to."""
    with begun(command(base, tmp_path, "--workers", "2"), tmp_path, blocks=0) as process:
        while not psutil.Process(process.pid).children():
            time.sleep(0.01)
        time.sleep(0.5)  # in the middle of their imports
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "fcn-batch: interrupted; run the same command again to go on"
    assert "Traceback" not in told


@pytest.mark.faults
def test_ctrl_c_twice_stops_at_once(base: Path, tmp_path: Path) -> None:
    with begun(command(base, tmp_path), tmp_path) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert told.splitlines()[-1] == "fcn-batch: interrupted; run the same command again to go on"
    assert "Traceback" not in told
    check_that_it_goes_on(base, tmp_path)


def test_without_grace_what_is_under_way_is_dropped(base: Path, tmp_path: Path) -> None:
    with begun(command(base, tmp_path, "--grace", "0"), tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 75
    assert "Traceback" not in told
    check_that_it_goes_on(base, tmp_path)


@pytest.mark.faults
def test_a_full_log_ends_no_run(base: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(base, tmp_path), stderr=full, stdout=subprocess.DEVNULL, check=False, timeout=PATIENCE_S
        )
    assert done.returncode == 0
    assert output_bytes(tmp_path, "a") == output_bytes(base / "reference", "a")


def test_a_terminal_that_is_closed_ends_no_run(base: Path, tmp_path: Path) -> None:
    """One that the run does not belong to: no SIGHUP comes, but whatever is told to it fails."""
    inside, outside = os.openpty()
    process = subprocess.Popen(
        command(base, tmp_path), stdout=subprocess.DEVNULL, stderr=outside, start_new_session=True
    )
    os.close(outside)
    os.close(inside)
    assert process.wait(PATIENCE_S) == 0
    assert output_bytes(tmp_path, "a") == output_bytes(base / "reference", "a")


@pytest.mark.faults
def test_a_reader_that_has_gone_makes_a_quiet_end(base: Path, tmp_path: Path) -> None:
    """The paths are told to a pipe that nobody reads: the map is complete all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        words = command(base, tmp_path, "-q")
        done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert done.stderr == ""
    assert output_bytes(tmp_path, "a") == output_bytes(base / "reference", "a")
