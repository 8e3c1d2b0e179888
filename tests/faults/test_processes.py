"""The real program, killed: its workers, the run itself, both, and at points of its way to the disk (G1, G7)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fcn_batch.pipeline.core.journal import Journal
from tests.patience import PATIENCE_S
from tests.runs import output_bytes, run_program
from tests.twolanes import command, undisturbed

BLOCKS = 64
CALLS = ("write", "pwrite64", "fsync", "rename", "link", "unlink", "mkdir")
POINTS = 20
"""Of the whole program; those of the way to the disk are tried one by one without the network."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("base"), 4000)


@contextmanager
def running(words: list[str], out: Path, blocks: int = 4) -> "Iterator[subprocess.Popen[str]]":
    """A run that has finished some blocks; nothing of it is left afterwards."""
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as run:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while len(list((out / "a.partial" / "receipts").glob("*.json"))) < blocks:
                assert run.poll() is None, run.stderr and run.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def workers_of(run: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Its worker processes; one more child of multiprocessing keeps count of resources."""
    children = psutil.Process(run.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def same_map(base: Path, out: Path) -> bool:
    """The pixels of every chunk; attributes hold the fingerprint, and so how many workers the segments are for."""
    made, wanted = output_bytes(out, "a"), output_bytes(base / "reference", "a")
    return {n: b for n, b in made.items() if "/c/" in n} == {n: b for n, b in wanted.items() if "/c/" in n}


def test_a_worker_that_is_killed_is_replaced(base: Path, tmp_path: Path) -> None:
    with running(command(base, tmp_path, "--workers", "2"), tmp_path) as run:
        victims = workers_of(run)
        assert len(victims) == 2
        victims[0].kill()
        told = run.communicate(timeout=PATIENCE_S)[1]
    assert run.returncode == 0, told
    assert "Traceback" not in told
    assert same_map(base, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("who", ["run", "all"])
def test_a_run_that_is_killed_with_or_without_its_workers(base: Path, tmp_path: Path, who: str) -> None:
    options = ("--workers", "2")
    with running(command(base, tmp_path, *options), tmp_path) as run:
        victims = workers_of(run) if who == "all" else []
        for victim in (*victims, psutil.Process(run.pid)):
            victim.kill()
        # at once, while workers may still be at their blocks
        result = run_program(command(base, tmp_path, *options))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert same_map(base, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith((".partial", ".tmp", ".lock"))] == []


def traced(words: list[str], *options: str) -> "subprocess.CompletedProcess[str]":
    return run_program(["strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}", *options, *words])


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_program_killed_at_points_of_its_way_to_the_disk(base: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    counted = traced(command(base, tmp_path / "counted"), "-o", str(log))
    if counted.returncode:
        pytest.skip(f"strace may not trace here: {counted.stderr.strip()[-200:]}")
    text = log.read_text()
    # the first call that belongs to the outputs: before that, nothing can be lost
    calls = re.findall(rf"^\d+ +({'|'.join(CALLS)})\(", text, re.MULTILINE)
    totals = {name: calls.count(name) for name in CALLS if calls.count(name) > 2}
    draw = np.random.default_rng(5)
    killed = 0
    for number in range(POINTS):
        name = list(totals)[number % len(totals)]
        count = int(draw.integers(max(1, totals[name] // 5), totals[name], endpoint=True))
        out = tmp_path / f"{number}"
        run = traced(command(base, out), "-e", f"inject={name}:signal=SIGKILL:when={count}", "-o", os.devnull)
        killed += run.returncode != 0
        if (out / "a.run.json").exists():
            assert output_bytes(out, "a") == output_bytes(base / "reference", "a"), (name, count)
        done = len(list(Journal(out / "a.partial").receipts())) if (out / "a.partial" / "plan.json").exists() else 0
        again = run_program(command(base, out))
        assert again.returncode == 0, (name, count, again.stderr)
        assert output_bytes(out, "a") == output_bytes(base / "reference", "a"), (name, count)
        assert done <= BLOCKS
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (base / "reference").iterdir())
        shutil.rmtree(out)
    sys.stdout.write(f"the whole program: {POINTS} points, {killed} killed, 0 wrong\n")
    assert killed >= POINTS // 2
