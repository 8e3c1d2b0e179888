"""Scripts for batch systems: every word arrives as it was given, signals reach the run, and no job goes on for ever.

What SLURM itself does with them is tested in `slurm/test_jobs.py`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest

from fcn_batch.commands.run import segment
from fcn_batch.workflows.submit import PROGRAM, hand_over
from tests.errors import refused
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import fcn_batch, output_bytes, run_program, scene, tree

TEMPLATES = sorted((Path(__file__).parents[1] / "workflows" / "slurm").glob("job.*"))
NASTY = 'it\'s 50% of "all" $HOME `id` \\n *.tif @MOST@'
"""A name that every layer would like to read otherwise."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a raster and a model, all of nasty names."""
    folder = tmp_path_factory.mktemp("made") / NASTY
    folder.mkdir()
    scene(folder / f"{NASTY}.tif", 40, 50)
    save_tiny_model(folder / f"{NASTY}.safetensors", fc_kernel=1)
    return folder


@pytest.fixture
def place(tmp_path: Path, made: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made, tmp_path / NASTY))


WORDS = [f"{NASTY}.tif", "-m", f"{NASTY}.safetensors"]
"""INPUT and model, as one writes them in their folder."""


def written(*arguments: object) -> str:
    """The script, or the line, of `fcn-batch submit ARGUMENTS`."""
    result = fcn_batch("submit", *arguments)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def params(words: list[str]) -> dict[str, object]:
    """What segment understands."""
    with segment.make_context("segment", list(words), help_option_names=["-h", "--help"]) as context:
        return context.params


def directives(script: str, mark: str) -> dict[str, str]:
    """Those of a script: names and values."""
    lines = [shlex.split(line.removeprefix(mark))[0] for line in script.splitlines() if line.startswith(mark)]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def played(script: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The script, run by bash as a batch system would, in another folder than it was made in."""
    (folder / "script").write_text(script)
    return subprocess.run(
        ["bash", "script"], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


# --- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "index"),
    [("slurm", {"SLURM_ARRAY_TASK_ID": "2"}), ("pbs", {"PBS_ARRAY_INDEX": "2", "PBS_JOBID": "7[2].x"})],
)
def test_a_job_is_told_what_the_user_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, index: Mapping[str, str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("fcn_batch.workflows.submit.PROGRAM", ("printf", "%s\\0"))
    given = [
        *WORDS,
        "-b",
        "3,2,1",
        "-qo",
        "-maps 100%",
        "--tile=64",
        "--on-error",
        "retry:5,mask",
        "--confidence",
    ]
    script = written(system, *given, "--parts", "3", "--mem", "3G", "--cpus", "4", "--dry-run")
    ran = played(script, tmp_path, **index)
    heard = ran.stdout
    if system == "pbs":  # its jobs have a log of their own
        (place / "-maps 100%").mkdir()
        played(script, tmp_path, **index)
        (log,) = (place / "-maps 100%").iterdir()
        assert log.name == f"{NASTY}.7[2].x.log"
        heard = log.read_text()
    assert heard.split("\0")[0] == "segment"
    expected = params(given)
    folder, model = place / "-maps 100%", place / f"{NASTY}.safetensors"
    expected |= {"inputs": (str(place / f"{NASTY}.tif"),), "output": str(folder), "model": str(model)}
    expected |= {"part": "2/3", "threads": 4, "memory": 3 * 10**9 // 2}
    if system == "slurm":
        expected["grace"] = 90.0
    assert params(heard.split("\0")[1:-1]) == expected


def test_what_the_user_chose_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    own = ["--threads", "3", "--memory", "5GB", "--grace", "7"]
    script = written("slurm", *WORDS, *own, "--parts", "2", "--cpus", "8", "--mem", "8G", "--dry-run")
    assert re.findall(r"--(?:threads|memory|grace)=\S+", script) == ["--threads=3", "--memory=5GB", "--grace=7"]


def test_several_processes_share_what_a_job_has(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    script = written("slurm", *WORDS, "-w", "3", "--parts", "2", "--cpus", "8", "--mem", "6G", "--dry-run")
    assert re.findall(r"--(?:threads|memory)=\S+", script) == ["--threads=2", "--memory=1000000000B"]


def test_one_job_that_has_workers(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("fcn_batch.workflows.submit.PROGRAM", ("printf", "%s\\0"))
    (place / "my.toml").write_text((files("fcn_batch.configs") / "clusters" / "slurm.toml").read_text())
    expected = params(WORDS) | {"inputs": (str(place / f"{NASTY}.tif"),), "model": str(place / f"{NASTY}.safetensors")}
    expected |= {"grace": 90.0, "workers": "3"}
    for own, cluster in (([], "slurm"), (["--cluster", "my.toml"], str(place / "my.toml"))):
        script = written("slurm", *WORDS, *own, "--dask", "3", "--dry-run")
        assert params(played(script, tmp_path).stdout.split("\0")[1:-1]) == expected | {"cluster": cluster}
        asked = directives(script, "#SBATCH")
        assert "--array" not in asked
        assert asked["--output"].endswith(".%j.log")


def test_what_slurm_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    wishes = shlex.split("--parts 5 --time 01:30:00 --mem 800MiB --cpus 2 --gpus 1 --partition p --account a")
    more = ["--sbatch", "--qos=low", "--sbatch", "constraint=a100 & ib", "--dry-run"]
    asked = directives(written("slurm", *WORDS, *wishes, *more), "#SBATCH")
    assert asked == {
        "--job-name": f"fcn-batch {NASTY}", "--array": "1-5", "--requeue": "", "--open-mode": "append",
        "--signal": "B:USR1@120", "--output": f"{place}/{NASTY}".replace("%", "%%") + ".%A_%a.log", "--ntasks": "1",
        "--cpus-per-task": "2", "--mem": "800M", "--time": "01:30:00", "--gres": "gpu:1", "--partition": "p",
        "--account": "a", "--qos": "low", "--constraint": "a100 & ib",
    }  # fmt: skip


def test_what_pbs_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    wishes = shlex.split("--time 01:30:00 --mem 800M --cpus 2 --gpus 1 --queue q --account a --qsub")
    scripts = [written("pbs", *WORDS, "--parts", n, *wishes, "-m n", "--dry-run") for n in (1, 5)]
    one, five = ([shlex.split(line)[1:] for line in text.splitlines() if line.startswith("#PBS")] for text in scripts)
    assert [line for line in five if line[0] == "-J"] == [["-J", "1-5"]]
    assert "-J" not in [line[0] for line in one], "PBS has no array of one"
    select = f"select=1:ncpus=2:mem={800 * 10**6}b:ngpus=1"
    expected = [["-r", "y"], ["-l", select], ["-l", "walltime=01:30:00"], ["-q", "q"], ["-A", "a"], ["-m", "n"]]
    assert [line for line in one if line in expected] == expected


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        *((words, 2, "option-not-for-jobs") for words in (["--part", "1/2"], ["--restart"], ["--overwrite"],
          ["--watch", "."], ["--scheduler", "tcp://localhost:1"])),
        (["--on-error", "panic"], 2, None),
        (["--bands", "1,2,9"], 2, None),
        (["-m", "none.safetensors"], 5, None),
        (["none.tif"], 4, None),
        (["--workers", "auto"], 2, "workers-invalid"),
        (["--workers", "some"], 2, "workers-invalid"),
        (["--account", "me\n#SBATCH --array=1-1000"], 2, "line-break"),
        *((words, 2, "usage") for words in (["--tiel", "5"], ["--mem", "much"], ["--parts", "0"], ["--dask", "2"],
          ["--cluster", "slurm"])),
    ],
)  # fmt: skip
def test_what_jobs_would_trip_over_is_refused_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], exit_code: int, code: str | None
) -> None:
    monkeypatch.chdir(place)
    before = tree(place)
    result = fcn_batch("submit", "slurm", *WORDS, "--parts", "2", *words)
    assert result.exit_code == exit_code, result.output
    assert not result.stdout
    if code not in (None, "usage"):
        refused(result, code)
    assert (code == "usage") == ("Usage: " in result.stderr)
    assert tree(place) == before


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    image = scene(tmp_path / "a\nb.tif", 40, 50)
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    for words in (["slurm", "--parts", "2", "--dry-run"], ["cron"]):
        result = fcn_batch("submit", *words, image, "-m", model)
        refused(result, "line-break")


@pytest.mark.parametrize("when", ["* * * *", "30 2 * * * root", "30 2 * * *\n* * * * * rm", "@reboot", "* * * * *; id"])
def test_what_is_no_time_of_cron(place: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    monkeypatch.chdir(place)
    refused(fcn_batch("submit", "cron", *WORDS, "--when", when), "when-invalid", value=repr(when))


# --- submission ----------------------------------------------------------------------------------------------


def fake(folder: Path, name: str, code: str) -> Path:
    """A program of the batch system."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("system", "program", "flags"), [("slurm", "sbatch", ["--parsable"]), ("pbs", "qsub", [])])
def test_the_script_is_submitted_and_the_id_printed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, program: str, flags: list[str]
) -> None:
    monkeypatch.chdir(place)
    fake(tmp_path / "bin", program, f'printf "%s\\0" "$@" >{tmp_path}/words; echo "4711;east"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for _ in range(2):  # also over the script of the first time
        result = fcn_batch("submit", system, *WORDS, "-o", "maps", "--parts", "2")
        assert (result.exit_code, result.stdout) == (0, "4711\n"), result.output
    script = place / "maps" / f"{NASTY}.{'sbatch' if system == 'slurm' else 'pbs'}"
    assert (tmp_path / "words").read_text().split("\0")[:-1] == [*flags, str(script)]
    assert script.read_text() == written(system, *WORDS, "-o", "maps", "--parts", "2", "--dry-run")


def test_what_sbatch_says_is_passed_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    fake(tmp_path / "bin", "sbatch", "echo 'sbatch: error: invalid partition specified: p' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    result = fcn_batch("submit", "slurm", *WORDS, "--parts", "2", "--partition", "p", "--script", "my.sh")
    refused(result, "job-refused", reason="sbatch: error: invalid partition specified: p")
    assert (place / "my.sh").exists()


def test_without_sbatch_the_script_is_left(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    result = fcn_batch("submit", "slurm", *WORDS, "--parts", "2")
    refused(result, "program-missing", program="sbatch")
    assert (place / f"{NASTY}.sbatch").exists()


def test_a_file_that_is_not_ours_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = fcn_batch("submit", "slurm", *WORDS, "--parts", "2", "--script", f"{NASTY}.safetensors")
    refused(result, "output-exists")


# --- the scripts themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_are_shell(template: Path) -> None:
    assert run_program(["bash", "-n", template]).stderr == ""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    assert run_program(["shellcheck", "--shell=bash", template]).stdout == ""


RUN = """
import os, signal, sys, time
how, folder = sys.argv[1:3]
for name in ("USR1", "TERM"):
    def heard(number, _frame, name=name):
        open(f"{folder}/heard", "a").write(name + " ")
        time.sleep(0.2)
        sys.exit(75)
    signal.signal(getattr(signal, "SIG" + name), signal.SIG_DFL if how == "deaf" else heard)
open(f"{folder}/ready", "w").close()
time.sleep(30) if how in ("waits", "deaf") else sys.exit(int(how))
"""


@pytest.mark.parametrize(
    ("how", "sent", "preempted", "restarts", "code", "queued_again"),
    [
        ("0", "", False, 0, 0, False),
        ("75", "", False, 0, 75, False),  # stopped by someone else than SLURM
        ("waits", "USR1", False, 0, 75, True),
        ("waits", "USR1", False, 100, 75, False),  # once too often
        ("waits", "TERM", False, 0, 75, False),  # cancelled
        ("waits", "TERM", True, 0, 75, True),
        ("waits", "USR1 TERM", False, 0, 75, False),  # cancelled while it stopped
        ("deaf", "USR1", False, 0, 138, True),
        ("deaf", "TERM", False, 0, 143, False),
    ],
)
def test_when_a_job_is_queued_again(
    tmp_path: Path, how: str, sent: str, preempted: bool, restarts: int, code: int, queued_again: bool
) -> None:
    (tmp_path / "run.py").write_text(RUN)
    template = next(path for path in TEMPLATES if path.name == "job.sbatch").read_text()
    command = shlex.join([sys.executable, str(tmp_path / "run.py"), how, str(tmp_path)])
    script = template.replace("@DIRECTIVES@", "").replace("@MOST@", "100").replace("@COMMAND@", command)
    time_of_preemption = "2026-11-23T06:32:32" if preempted else "None"
    shown = f'echo "JobId=5 PreemptEligibleTime=2026-11-23T06:32:12 PreemptTime={time_of_preemption} Restarts=0"'
    fake(tmp_path / "bin", "scontrol", f'case $1 in show) {shown} ;; *) echo "$@" >{tmp_path}/asked ;; esac')
    (tmp_path / "script").write_text(script)
    ids = {
        "SLURM_JOB_ID": "6",
        "SLURM_ARRAY_JOB_ID": "5",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    environment = {**os.environ, **ids, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "script"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for name in sent.split():
            job.send_signal(getattr(signal, f"SIG{name}"))
            time.sleep(0.05)
        assert job.wait(PATIENCE_S) == code
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 5_1\n" if queued_again else "")


def test_a_job_of_pbs_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    script = written("pbs", *WORDS, "-o", "jobs", "--parts", "2", "--dry-run")
    (place / "jobs").mkdir()
    for part in "12":
        ran = played(script, tmp_path, PBS_ARRAY_INDEX=part, PBS_JOBID=f"7[{part}].host")
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert len(list((place / "jobs").glob("*.log"))) == 2
    assert fcn_batch("segment", *WORDS, "-o", "here", "--threads", "1").exit_code == 0
    assert output_bytes(place / "jobs", NASTY) == output_bytes(place / "here", NASTY)


def test_a_line_for_cron_runs_and_then_has_nothing_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (line,) = written("cron", *WORDS, "-o", "maps", "--when", "30 2 * * 1-5").splitlines()
    assert line.startswith("30 2 * * 1-5 ")
    assert "%" not in line.replace("\\%", "")
    (place / "maps").mkdir()
    command = line.split(maxsplit=5)[5].replace("\\%", "%")  # as cron reads it
    seen = []
    for _ in range(2):
        ran = subprocess.run(["/bin/sh", "-c", command], cwd="/", env={"HOME": "/"}, capture_output=True, check=False)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
        seen.append({name: found for name, found in tree(place / "maps").items() if not name.endswith(".log")})
    assert seen[0] == seen[1]
    assert f"{NASTY}.run.json" in seen[0]
    assert (place / "maps" / f"{NASTY}.cron.log").read_text().count(f"{NASTY}.run.json") == 2


def test_a_batch_system_may_say_anything(tmp_path: Path) -> None:
    """In whatever encoding: the job is submitted by then."""
    says = "import sys; sys.stdout.buffer.write(b'4711;\\xe9t\\xe9')"
    assert hand_over([sys.executable, "-c", says], tmp_path / "job") == "4711"


def test_the_program_of_a_job_is_this_one(tmp_path: Path) -> None:
    """Also where modules of the same names lie about."""
    for name in ("fcn_batch", "click", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another one')")
    ran = subprocess.run([*PROGRAM, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout == fcn_batch("--version").stdout, ran.stderr
