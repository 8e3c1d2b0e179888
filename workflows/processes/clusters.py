"""What `--cluster` stands for: a file of a few lines about the jobs that become a run's workers."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.limits import MAX_TEXT, parsed_toml, read_bounded

Kind = Literal["slurm", "pbs", "lsf", "sge", "cuda"]
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MOST_GRACE = 0.2
"""Of a job's time."""
_LEAST_WALLTIME_S = 120
_OF_JOBS = ("cores", "memory", "walltime")
_LINE = r"^[^\n\r\x00]*$"
_WORD = r"^[\w.,:/@+=-]+$"


class ClusterFile(BaseModel):
    """The jobs of a cluster; `cuda` is this machine, with a process for each of its GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind
    """The batch system, or cuda."""
    workers: int | None = Field(default=None, ge=1, le=10_000)
    """Jobs at a time, each with one process; None: for cuda, one for each GPU."""
    cores: int | None = Field(default=None, ge=1, le=1024)
    """Cores of a job, and threads of its network."""
    memory: str | None = None
    """Of a job, such as 16GB; the network and its rows get half of it."""
    walltime: str | None = None
    """Of a job, HH:MM:SS. A job that ends is replaced until all is done."""
    queue: str | None = Field(default=None, pattern=_WORD)
    """Partition or queue; None: the system's default."""
    account: str | None = Field(default=None, pattern=_WORD)
    """Who pays; for LSF and SGE the project."""
    interface: str | None = Field(default=None, pattern=_WORD)
    """Network interface by which jobs reach this process, and each other: ib0; None: that of the default route."""
    directives: tuple[str, ...] = ()
    """More lines for the head of the job script, without #SBATCH or the like."""
    prologue: tuple[str, ...] = ()
    """Shell commands before the worker starts: modules, environments."""
    resources: str | None = Field(default=None, pattern=_LINE)
    """PBS and SGE: what is asked for (-l), instead of cores and memory."""
    grace: int = Field(default=300, ge=10, le=3600)
    """Seconds before the end of its job's time at which a worker hands on what it does; a fifth of it at most."""
    wait: str = "24:00:00"
    """How long a run waits for its first worker, and for another when all are gone, HH:MM:SS."""

    @field_validator("memory")
    @classmethod
    def _amount(cls, value: str | None) -> str | None:
        if value is not None:
            _bytes(value)
        return value

    @field_validator("walltime", "wait")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @field_validator("directives", "prologue")
    @classmethod
    def _lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not re.fullmatch(_LINE, line):
                raise ValueError(f"{line!r} is more than one line; give a list of lines")
        return value

    @model_validator(mode="after")
    def _complete(self) -> "ClusterFile":
        if self.kind == "cuda":
            for key in (*_OF_JOBS, "queue", "account", "interface", "directives", "prologue", "resources"):
                if getattr(self, key):
                    raise ValueError(f"{key} is of batch systems; kind = 'cuda' is this machine: leave it out")
            return self
        for key in ("workers", *_OF_JOBS):
            if getattr(self, key) is None:
                raise ValueError(f"{key} is missing; a job of {self.kind} needs it")
        if (seconds := seconds_of(self.walltime or "")) < _LEAST_WALLTIME_S:
            raise ValueError(f"walltime {self.walltime} is {seconds} s; give jobs at least {_LEAST_WALLTIME_S} s")
        if self.resources and self.kind not in ("pbs", "sge"):
            raise ValueError(f"resources {self.resources!r}: {self.kind} has directives for that")
        return self

    @property
    def bytes(self) -> int | None:
        """Memory of a job."""
        return None if self.memory is None else _bytes(self.memory)

    @property
    def lifetime(self) -> tuple[int, int]:
        """Seconds after which a worker ends by itself, before its job's time does, and by how much that varies.

        >>> ClusterFile(kind="slurm", workers=1, cores=1, memory="1GB", walltime="01:00:00").lifetime
        (3150, 150)
        """
        seconds = seconds_of(self.walltime or "")
        grace = min(self.grace, int(seconds * _MOST_GRACE))
        return seconds - grace - grace // 2, grace // 2


def seconds_of(time: str) -> int:
    """``01:30:00`` to 5400; ValueError for what is no time."""
    found = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", time, re.ASCII)
    if found is None:
        raise ValueError(f"{time!r} is not a time; give HH:MM:SS")
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9}) ?([MGT]I?B)", text.upper(), re.ASCII)
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} is not an amount of memory; give it as 16GB or 500MiB")
    return int(found[1]) * _UNITS[found[2]]


def read_cluster(name: str) -> ClusterFile:
    """The shipped file of that name, or the file at that path (``.toml``); OptionError names each problem of it."""
    path = _shipped() / f"{name}.toml"
    if name.endswith(".toml"):
        path = Path(name)
    elif not re.fullmatch(r"[a-z]+", name) or not path.is_file():
        known = ", ".join(sorted(file.stem for file in _shipped().glob("*.toml")))
        raise OptionError(f"--cluster {name}: give {known}, or the path of a file that ends in .toml")
    try:
        return ClusterFile.model_validate(parsed_toml(read_bounded(path, MAX_TEXT)))
    except OSError as error:
        raise OptionError(f"--cluster {path}: cannot be read: {error.strerror}; copy one from {_shipped()}") from error
    except ValidationError as error:
        told = "; ".join(_problem(dict(problem)) for problem in error.errors())
        raise OptionError(f"--cluster {path}: {told}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--cluster {path}: not a TOML file, or one that is nested too deeply: {error}") from error


def _problem(problem: dict[str, Any]) -> str:
    """Key, value and what to do, of one of pydantic's errors."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: no such key; there are {', '.join(ClusterFile.model_fields)}"
    if problem["type"] == "missing":
        return f"{key}: is missing; add it"
    why = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {why}" if key else why


def _shipped() -> Path:
    return Path(str(files("fcn_batch.configs"))) / "clusters"
