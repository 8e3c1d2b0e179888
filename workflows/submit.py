"""`fcn-batch submit`: a segment command as jobs of a batch system: the script of a job array, and its submission.

The scripts are templates in `workflows/slurm/`, in which ``@NAME@`` stands for what is filled in. Every word of the
user is quoted for the shell, or refused where a batch system has no way to quote it.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.core.tolerance import OnError
from fcn_batch.workflows.outputs.publishing import outputs_of
from fcn_batch.workflows.plan import Options, prepare
from fcn_batch.workflows.processes.topology import count_of

PROGRAM = (sys.executable, "-P", "-m", "fcn_batch")
"""This Python and this program, whatever lies in the folder of a job or on its PATH."""
GRACE_S = 90
"""Seconds that a run gets to finish its blocks: with what it needs to end, less than what is left at the signal."""
_SIGNAL_S = 120
_MOST_REQUEUES = 100
_MINE = "# Written by `fcn-batch submit "


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment command that means the same in every folder."""

    options: tuple[str, ...]
    """As ``--name=value``, paths absolute."""
    inputs: tuple[Path | Url, ...]
    folder: Path | None = None
    """Of the outputs; None: beside each input."""

    def __post_init__(self) -> None:
        for name, why in _REFUSED.items():
            if self.has(name):
                raise OptionError("option-not-for-jobs", "{name}: not for a job of many, {why}", name=name, why=why)

    @property
    def home(self) -> Path:
        """The folder of the outputs, or of those of the first input."""
        first = self.inputs[0]
        return self.folder or (first.parent if isinstance(first, Path) else Path.cwd())

    @property
    def name(self) -> str:
        """Of the first input: what script and logs are called."""
        return self.inputs[0].stem

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return any(option == name or option.startswith(f"{name}=") for option in self.options)

    def value(self, name: str) -> str | None:
        """Of an option that was given; None when it was not."""
        return next((option.partition("=")[2] for option in self.options if option.startswith(f"{name}=")), None)

    def given(self, *options: str) -> "Segment":
        """With more options; those that the user gave stay."""
        new = tuple(option for option in options if not self.has(option.partition("=")[0]))
        return replace(self, options=(*self.options, *new))

    def words(self) -> list[str]:
        """The command."""
        return [*PROGRAM, "segment", *self.options, *map(str, self.inputs)]


_REFUSED = {
    "--part": "which are numbered by submit: give --parts N",
    "--scheduler": "which need none: give it to segment itself",
    "--restart": "where each that begins would discard what others did: delete NAME.partial first",
    "--watch": "which never end: run `segment --watch` as a service of its own",
    "--overwrite": "where one that begins late would make it all again: delete the outputs first",
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What each job asks of the batch system; None: what that gives by itself."""

    time: str | None = None
    """Hours, minutes and seconds."""
    memory: int | None = None
    """Bytes."""
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None
    """Of PBS: the queue."""
    account: str | None = None
    extra: tuple[str, ...] = ()
    """More options of the batch system, as it writes them."""

    def fitted(self, segment: Segment) -> Segment:
        """The command with threads and memory as each job has them: nodes have more than they give to one job."""
        if segment.value("--workers") == "auto":
            raise OptionError(
                "workers-invalid",
                "--workers {value}: counts what a node has, not what it gives to a job; give a number",
                value="auto",
            )
        processes = max(1, count_of(segment.value("--workers") or "0"))
        options = [f"--threads={max(1, self.cpus // processes)}"]
        if self.memory is not None:
            options.append(f"--memory={self.memory // 2 // processes}B")
        return segment.given(*options)


def check(segment: Segment, options: Options) -> None:
    """Find now what would end the jobs: OptionError, InputError or ModelError with the reason.

    Left to the nodes is what depends on them: device, precision, threads and memory.
    """
    outputs_of(list(segment.inputs), segment.folder)
    here = replace(options, device="cpu", precision=None, threads=None, memory=None, verify_input=False)
    on_error = OnError.parse(segment.value("--on-error") or "fail")
    for path in segment.inputs:
        prepare(path, here, on_error=on_error)


def slurm_script(segment: Segment, parts: int | None, resources: Resources) -> str:
    """An array of `parts` jobs, each of which does its part; None: one job, which submits its workers itself."""
    log = f"{segment.home / segment.name}".replace("%", "%%") + (".%A_%a.log" if parts else ".%j.log")
    wanted = [
        f"--job-name=fcn-batch {segment.name}",
        *([f"--array=1-{parts}"] if parts else []),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{_SIGNAL_S}",
        f"--output={log}",
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        *([f"--mem={-(-resources.memory // 2**20)}M"] if resources.memory else []),  # SLURM's M is a MiB
        *_given("--time=", resources.time),
        *_given("--gres=gpu:", resources.gpus or None),
        *_given("--partition=", resources.partition),
        *_given("--account=", resources.account),
        *(option if option.startswith("-") else f"--{option}" for option in resources.extra),
    ]
    command = (resources.fitted(segment) if parts else segment).given(f"--grace={GRACE_S}").words()
    part = f' --part "$SLURM_ARRAY_TASK_ID/{parts}"' if parts else ""
    return _filled(
        "job.sbatch",
        DIRECTIVES=_directives("#SBATCH", wanted),
        MOST=str(_MOST_REQUEUES),
        COMMAND=shlex.join(command) + part,
    )


def pbs_script(segment: Segment, parts: int, resources: Resources) -> str:
    """The same for qsub of PBS Pro and OpenPBS."""
    chunk = f"-l select=1:ncpus={resources.cpus}"
    chunk += f":mem={resources.memory}b" if resources.memory else ""
    chunk += f":ngpus={resources.gpus}" if resources.gpus else ""
    wanted = [
        "-N fcn-batch",
        *([f"-J 1-{parts}"] if parts > 1 else []),  # PBS knows no array of one
        "-r y",
        "-o /dev/null",  # the script has a log of its own, whose name may hold blanks
        "-j oe",
        chunk,
        *_given("-l walltime=", resources.time),
        *_given("-q ", resources.partition),
        *_given("-A ", resources.account),
        *resources.extra,
    ]
    command = shlex.join(resources.fitted(segment).words()) + f' --part "${{PBS_ARRAY_INDEX:-1}}/{parts}"'
    log = shlex.quote(str(segment.home / segment.name))
    return _filled("job.pbs", DIRECTIVES=_directives("#PBS", wanted), LOG=log, COMMAND=command)


def cron_line(segment: Segment, when: str) -> str:
    """A line of a crontab: at these times the command goes on, or looks whether there is something new to do."""
    if len(when.split()) != 5 or not re.fullmatch(r"[\w*/, -]+", when, re.ASCII):
        raise OptionError(
            "when-invalid",
            "--when {value}: not a time of cron; give minute, hour, day, month and weekday: '30 2 * * *'",
            value=repr(when),
        )
    command = shlex.join(segment.given("--quiet").words())
    line = f"{command} >>{shlex.quote(f'{segment.home / segment.name}.cron.log')} 2>&1"
    if "\n" in line:
        raise OptionError(
            "line-break",
            "{value}: a crontab has no way to write the line break in this name; rename it",
            value=segment.inputs[0],
        )
    return f"{when} {line.replace('%', chr(92) + '%')}"  # cron's own mark for the end of a line


def write_script(path: Path, text: str) -> None:
    """Write a script, also over one of ours; OutputError when something else is there, or it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _MINE not in path.read_text("utf-8", "replace"):
            raise OutputError(
                "output-exists",
                "{path}: exists and was not written by fcn-batch submit; give another name with --script",
                path=path,
            )
        path.write_text(text, "utf-8")
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path}: cannot be written ({reason}); give another place with --script",
            path=path,
            reason=error.strerror,
        ) from error


def hand_over(words: Sequence[str], script: Path) -> str:
    """Submit `script` with a program of the batch system; the id of the job. OptionError when that says no."""
    try:
        ran = subprocess.run([*words, str(script)], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise OptionError(
            "program-missing",
            "{program}: cannot be run here ({reason}); {path} is written: submit it where {program} is",
            program=words[0],
            reason=error.strerror,
            path=script,
        ) from error
    if ran.returncode:
        raise OptionError(
            "job-refused",
            "{path} is written, but {program} refused it: {reason}",
            path=script,
            program=words[0],
            reason=ran.stderr.strip() or ran.returncode,
        )
    return ran.stdout.strip().partition(";")[0]  # of a federation: the cluster's name behind it


def _given(name: str, value: object) -> list[str]:
    return [] if value is None else [f"{name}{value}"]


def _directives(mark: str, wanted: Sequence[str]) -> str:
    """One line each, quoted as both batch systems read it."""
    for option in wanted:
        if re.search(r"[\n\r\0]", option):
            raise OptionError(
                "line-break",
                "{value}: a batch script has no way to write a line break; choose another name",
                value=repr(option),
            )
    if mark == "#PBS":
        return "\n".join(f"{mark} {option}" for option in wanted)
    return "\n".join(f"{mark} {shlex.quote(option)}" for option in wanted)


def _filled(template: str, **values: str) -> str:
    text = files("fcn_batch.workflows").joinpath("slurm", template).read_text("utf-8")
    return re.sub("@([A-Z]+)@", lambda found: values[found[1]], text)
