"""The file behind `--cluster`: a few keys about the jobs, or GPUs, that become a run's workers."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.limits import MAX_TEXT, parsed_toml, read_bounded
from fcn_batch.pipeline.core.units import bytes_of, seconds_of

Kind = Literal["slurm", "pbs", "cuda"]
_GRACE_S = 300
"""Before the end of its job's time a worker hands on what it does; a fifth of that time at most."""
_LEAST_WALLTIME_S = 120
_OF_JOBS = ("cores", "memory", "walltime")


def _parsed(parse: Callable[[str], int]) -> BeforeValidator:
    def parsed(value: Any) -> int:
        try:
            return parse(str(value))
        except OptionError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(parsed)


_Word = Annotated[str, StringConstraints(pattern=r"^[\w.,:/@+=-]+$")]
_Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r\x00]*$")]
_Seconds = Annotated[int, _parsed(seconds_of)]


class ClusterFile(BaseModel):
    """The jobs of a cluster; `cuda` is this machine, with a process for each of its GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind
    """The batch system, or cuda."""
    workers: int | None = Field(default=None, ge=1, le=10_000)
    """Jobs at a time, each with one process; None: for cuda, one for each GPU."""
    cores: int | None = Field(default=None, ge=1, le=1024)
    """Cores of a job, and threads of its network."""
    memory: Annotated[int, _parsed(bytes_of)] | None = None
    """Of a job, such as 16GB; the network and its rows get half of it."""
    walltime: _Seconds | None = None
    """Of a job, HH:MM:SS. A job that ends is replaced until all is done."""
    queue: _Word | None = None
    """Partition or queue; None: the system's default."""
    account: _Word | None = None
    """Who pays."""
    interface: _Word | None = None
    """Network interface by which jobs reach this process, and each other: ib0; None: that of the default route."""
    directives: tuple[_Line, ...] = ()
    """More lines for the head of the job script, without #SBATCH or the like."""
    prologue: tuple[_Line, ...] = ()
    """Shell commands before the worker starts: modules, environments."""
    resources: _Line | None = None
    """PBS: what a job asks for (-l), instead of cores and memory."""
    wait: _Seconds = 24 * 3600
    """How long a run waits for its first worker, and for another when all are gone, HH:MM:SS."""

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
        if (self.walltime or 0) < _LEAST_WALLTIME_S:
            raise ValueError(f"walltime is {self.walltime} s; give jobs at least {_LEAST_WALLTIME_S} s")
        if self.resources and self.kind != "pbs":
            raise ValueError(f"resources {self.resources!r}: {self.kind} has directives for that")
        return self

    @property
    def lifetime(self) -> tuple[int, int]:
        """Seconds after which a worker ends by itself, before its job's time does, and by how much that varies.

        >>> ClusterFile(kind="slurm", workers=1, cores=1, memory="1GB", walltime="01:00:00").lifetime
        (3150, 150)
        """
        seconds = self.walltime or 0
        grace = min(_GRACE_S, seconds // 5)
        return seconds - grace - grace // 2, grace // 2


def read_cluster(name: str) -> ClusterFile:
    """Read the shipped file of that name, or the file at that path (``.toml``); OptionError names each problem."""
    shipped = Path(str(files("fcn_batch.configs"))) / "clusters"
    path = Path(name) if name.endswith(".toml") else shipped / f"{name}.toml"
    if not name.endswith(".toml") and (not re.fullmatch(r"[a-z]+", name) or not path.is_file()):
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
        raise OptionError(
            "cluster-unknown",
            "--cluster {name}: give {known}, or the path of a file that ends in .toml; other batch systems can start "
            "Dask workers for --scheduler",
            name=name,
            known=known,
        )
    try:
        return ClusterFile.model_validate(parsed_toml(read_bounded(path, MAX_TEXT)))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}; copy one from {shipped}"
    except ValidationError as error:
        problem = "; ".join(_problem(dict(one)) for one in error.errors())
    except (ValueError, RecursionError) as error:
        problem = f"not a TOML file, or one that is nested too deeply: {error}"
    raise OptionError("cluster-invalid", "--cluster {path}: {problem}", path=path, problem=problem)


def _problem(problem: dict[str, Any]) -> str:
    """Return key, value and remedy of one of pydantic's errors."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: no such key; there are {', '.join(ClusterFile.model_fields)}"
    if problem["type"] == "missing":
        return f"{key}: is missing; add it"
    why = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {why}" if key else why
