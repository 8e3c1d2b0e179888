"""Jobs of `fcn-batch submit slurm` on a real SLURM: the same bytes, whatever it does to them (G8, G10)."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.errors import StoppedError
from fcn_batch.workflows.outputs.publishing import Outputs
from tests.models import save_tiny_model
from tests.runs import fcn_batch, output_bytes, run_program, scene, small_block_program
from tests.slurm import program
from tests.slurm.machine import Slurm, until
from tests.twolanes import undisturbed

pytestmark = pytest.mark.slurm

Record = Callable[[str, object], None]

BLOCKS, LANES = 64, 2
"""Of the raster, row by row."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster of two lanes of 32 blocks, a model and, in `reference`, the outputs of an undisturbed run."""
    return undisturbed(tmp_path_factory.mktemp("base"), 4000)


@pytest.fixture(autouse=True)
def small_blocks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run a program with small blocks, each of which takes half a second."""
    _, script = small_block_program(base, halos=1)
    monkeypatch.setattr("fcn_batch.workflows.submit.PROGRAM", (sys.executable, "-P", str(program.FILE), script))
    monkeypatch.setenv(program.SLOW, "0.5")


def submitted(base: Path, out: Path, *options: str) -> str:
    """The id of the job array."""
    where = [base / "a.tif", "-m", base / "tiny.safetensors", "-o", out]
    result = fcn_batch("submit", "slurm", *where, "--mem", "1500M", *options)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def begun(out: Path, blocks: int = 5) -> None:
    """Returns when so many blocks are done."""
    until(lambda: len(finished(out)) >= blocks or None, 60, lambda: logs(out))


def finished(out: Path) -> dict[int, tuple[int, int]]:
    """Blocks with a receipt: inode and time of change of the file that holds each, here or in the published store."""
    staging = Outputs(out, "a").staging
    receipts = (staging / "receipts").glob("*.json")
    return chunks(staging, [int(path.stem) for path in receipts])


def chunks(folder: Path, blocks: list[int]) -> dict[int, tuple[int, int]]:
    """The same for blocks that are known."""
    found = {}
    for block in blocks:
        row, column = divmod(block, LANES)
        status = (folder / "a.classes.zarr" / "classes" / "c" / str(row) / str(column)).stat()
        found[block] = (status.st_ino, status.st_mtime_ns)
    return found


def logs(out: Path) -> str:
    """What the jobs printed."""
    return "\n".join(path.read_text() for path in sorted(out.glob("*.log")))


def check_that_nothing_was_done_again(
    base: Path, out: Path, done: dict[int, tuple[int, int]], record_property: Record
) -> None:
    """The map is complete and right, with the very files of the blocks that were done before."""
    again = sum(chunk != done[block] for block, chunk in chunks(out, list(done)).items())
    record_property("measured", f"{len(done)} of {BLOCKS} blocks before it, {again} of them done again")
    assert 5 <= len(done) < BLOCKS
    assert output_bytes(out, "a") == output_bytes(base / "reference", "a"), logs(out)
    assert not again
    assert not Outputs(out, "a").staging.exists()


def test_an_array_of_the_program_as_it_is(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """With names that have to be quoted, for the shell, for sbatch and in names of logs."""
    record_property("scenario", "array of parts 1/3 to 3/3")
    monkeypatch.undo()
    folder = tmp_path / 'it\'s 50% of "all"'
    folder.mkdir()
    image, model = scene(folder / "a b's %A.tif", 9000, 200), save_tiny_model(folder / "my $model.safetensors")
    words = ["segment", image, "-m", model, "-o", folder / "here", "--threads", 1]
    result = run_program([sys.executable, "-m", "fcn_batch", *words])
    assert result.returncode == 0, result.stderr
    out = folder / "jobs"
    result_of_submit = fcn_batch("submit", "slurm", image, "-m", model, "-o", out, "--parts", 3, "--mem", "1500M")
    assert result_of_submit.exit_code == 0, result_of_submit.output
    job = result_of_submit.stdout.strip()
    for part in (1, 2, 3):
        slurm.wait(f"{job}_{part}", "COMPLETED")
    assert output_bytes(out, image.stem) == output_bytes(folder / "here", image.stem)
    assert sorted(path.name for path in out.glob("*.log")) == [f"{image.stem}.{job}_{part}.log" for part in (1, 2, 3)]
    record_property("measured", "the bytes of a run in one process")


def test_a_cancelled_part_is_left_and_done_when_it_is_submitted_again(
    slurm: Slurm, base: Path, tmp_path: Path, record_property: Record
) -> None:
    record_property("scenario", "scancel of a part, submitted again")
    out = tmp_path / "out"
    job = submitted(base, out, "--parts", "3")
    begun(out)
    slurm.run("scancel", f"{job}_2")
    assert slurm.wait(f"{job}_2", "CANCELLED")["Restarts"] == "0"
    for part in (1, 3):
        slurm.wait(f"{job}_{part}", "COMPLETED")
    assert not (out / "a.run.json").exists(), "a part is missing"
    status = fcn_batch("status", out)
    assert status.exit_code == StoppedError.exit_code, status.output
    done = finished(out)
    again = slurm.run("sbatch", "--parsable", "--array=2", str(out / "a.sbatch")).strip()
    slurm.wait(f"{again}_2", "COMPLETED")
    check_that_nothing_was_done_again(base, out, done, record_property)


@pytest.mark.parametrize("told", ["nothing", "TERM", "USR1"])
def test_a_preempted_job_goes_on_where_it_was(
    slurm: Slurm, base: Path, tmp_path: Path, told: str, record_property: Record
) -> None:
    """Some SLURMs send a batch job a signal when its grace begins, others nothing before its end."""
    record_property("scenario", f"preempted, hears {told} first; queued again")
    out = tmp_path / "out"
    job = f"{submitted(base, out, '--parts', '1', '--partition', 'scavenge')}_1"
    begun(out)
    urgent = slurm.run("sbatch", "--parsable", "--exclusive", "--mem=50M", "--output=/dev/null", "--wrap=sleep 5")
    until(lambda: slurm.state(job).get("PreemptTime", "None") != "None" or None, 30, lambda: str(slurm.state(job)))
    if told != "nothing":
        slurm.run("scancel", "--batch", f"--signal={told}", job)
    slurm.wait(job, "PENDING", seconds=60)
    done = finished(out)
    slurm.wait(urgent.strip(), "COMPLETED")
    assert slurm.wait(job, "COMPLETED")["Restarts"] == "1"
    check_that_nothing_was_done_again(base, out, done, record_property)


def test_a_job_whose_time_ends_is_queued_again(
    slurm: Slurm, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    record_property("scenario", "time limit: USR1, exit code 75, queued again")
    monkeypatch.setenv(program.SLOW, "0.9")
    out = tmp_path / "out"
    at_once = ("--sbatch", "signal=B:USR1@20", "--grace", "10")
    job = f"{submitted(base, out, '--parts', '1', '--time', '00:01:00', *at_once)}_1"
    slurm.wait(job, "PENDING", "COMPLETED", seconds=20)
    begun(out)
    slurm.wait(job, "PENDING", seconds=60)
    done = finished(out)
    assert "USR1: finishing the blocks under way (they have 10 s)" in logs(out)
    ended = slurm.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=150)
    assert ended["JobState"] == "COMPLETED", logs(out)
    assert int(ended["Restarts"]) >= 1
    check_that_nothing_was_done_again(base, out, done, record_property)


def test_a_job_that_takes_too_much_memory_leaves_what_is_done(
    slurm: Slurm, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    record_property("scenario", "out of memory, submitted again")
    if not slurm.cgroups:
        pytest.skip("jobs cannot be put into cgroups here, so nothing limits their memory")
    monkeypatch.setenv(program.HUNGRY, "8")
    out = tmp_path / "out"
    job = f"{submitted(base, out, '--parts', '1')}_1"
    assert slurm.wait(job, "OUT_OF_MEMORY", "COMPLETED", "FAILED")["JobState"] == "OUT_OF_MEMORY"
    done = finished(out)
    monkeypatch.delenv(program.HUNGRY)
    again = slurm.run("sbatch", "--parsable", str(out / "a.sbatch")).strip()
    slurm.wait(f"{again}_1", "COMPLETED")
    check_that_nothing_was_done_again(base, out, done, record_property)


def test_a_job_whose_node_is_lost_is_queued_again(
    slurm: Slurm, base: Path, tmp_path: Path, record_property: Record
) -> None:
    record_property("scenario", "node set down; queued again")
    out = tmp_path / "out"
    job = f"{submitted(base, out, '--parts', '1')}_1"
    begun(out)
    slurm.run("scontrol", "update", f"NodeName={slurm.host.name}", "State=DOWN", "Reason=test")
    slurm.wait(job, "PENDING")
    until(lambda: not Outputs(out, "a").journal.claims.living() or None, 60, lambda: "the run is at work still")
    done = finished(out)
    if "down" in slurm.run("sinfo", "--noheader", "--format=%T"):  # it may have come back by itself
        slurm.run("scontrol", "update", f"NodeName={slurm.host.name}", "State=RESUME")
    assert slurm.wait(job, "COMPLETED")["Restarts"] == "1"
    check_that_nothing_was_done_again(base, out, done, record_property)


CLUSTER = """
kind = "slurm"
workers = 2
cores = 1
memory = "1500MB"
walltime = "00:10:00"
interface = "lo"
directives = ["--job-name=worker-of-test"]
"""
CLUSTER_JOB = "worker-of-test"


def _workers(slurm: Slurm) -> list[dict[str, str]] | None:
    """Return the jobs that are workers, ended ones too; None while one is still ending."""
    listed = slurm.run("scontrol", "show", "job", "-o").splitlines()
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in listed]
    found = [job for job in jobs if job["JobName"] == CLUSTER_JOB]
    return None if any(job["JobState"] == "COMPLETING" for job in found) else found


def test_one_job_whose_workers_are_jobs_too(slurm: Slurm, base: Path, tmp_path: Path, record_property: Record) -> None:
    """It takes a CPU, and there may be no more than one other: the second worker waits meanwhile."""
    record_property("scenario", "one job, which submits 2 more as its Dask workers")
    (tmp_path / "my.toml").write_text(CLUSTER)
    out = tmp_path / "out"
    job = submitted(base, out, "--dask", "2", "--cluster", str(tmp_path / "my.toml"))
    done = slurm.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=200)
    assert done["JobState"] == "COMPLETED", logs(out)
    made, wanted = (output_bytes(folder, "a") for folder in (out, base / "reference"))
    assert {name: made[name] for name in made if "/c/" in name} == {n: wanted[n] for n in wanted if "/c/" in n}
    # the node clears up after a cancelled job
    workers = until(lambda: _workers(slurm), 60, lambda: "jobs are still completing")
    assert len(workers) >= 2
    assert {job["JobState"] for job in workers} <= {"CANCELLED", "COMPLETED"}, "jobs are left"
    busy = sum(job["RunTime"] != "00:00:00" for job in workers)
    assert busy
    record_property("measured", f"the bytes of a run in one process; {busy} of {len(workers)} workers found a CPU")
