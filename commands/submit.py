"""`submit slurm|pbs|cron`: a segment command as jobs of a batch system."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcn_batch.commands.base import PATH, Group, examples, parameter
from fcn_batch.commands.completion import complete_files
from fcn_batch.commands.run import segment as segment_command
from fcn_batch.pipeline.core.units import bytes_of

if TYPE_CHECKING:
    from fcn_batch.workflows.submit import Segment

_OPEN = {"ignore_unknown_options": True}
"""Words that a command does not know are segment's, which checks them."""
_words = click.argument(
    "words",
    metavar="INPUT... [OPTIONS OF SEGMENT]",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    shell_complete=complete_files,
)


def _job_options(queue: str) -> Callable[[Any], Any]:
    """What jobs ask for, and what becomes of their script; `queue`: the batch system's word for one."""
    options = (
        _words,
        click.option("--parts", type=click.IntRange(1), metavar="N", help="Jobs, each with its share of the blocks."),
        click.option(
            "--time", metavar="HH:MM:SS", help="Longest time of a job; a job that needs more is queued again."
        ),
        click.option(
            "--mem",
            "memory",
            type=parameter(bytes_of),
            metavar="SIZE",
            help="Memory of a job, such as 8GB or 8GiB; also sets --memory to half of it.",
        ),
        click.option(
            "--cpus",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            metavar="N",
            help="CPUs of a job; also sets --threads.",
        ),
        click.option("--gpus", type=click.IntRange(0), default=0, metavar="N", help="GPUs of a job."),
        click.option(f"--{queue}", "partition", metavar=queue.upper(), help=f"The {queue} that jobs wait in."),
        click.option("--account", metavar="NAME", help="Who pays."),
        click.option("--script", type=PATH, metavar="FILE", help="The script; default: NAME beside the outputs."),
        click.option("--dry-run", is_flag=True, help="Print the script and do no more."),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group(cls=Group)
def submit() -> None:
    """Hand a segment command over to a batch system."""


@submit.command(
    "slurm",
    context_settings=_OPEN,
    epilog=examples(
        "fcn-batch submit slurm big.tif -o maps/ --parts 8 --cpus 4 --mem 8G --time 04:00:00",
        "fcn-batch submit slurm big.tif -m my.toml --parts 2 --gpus 1 --partition scavenge --sbatch --qos=low",
    ),
)
@_job_options("partition")
@click.option("--sbatch", "extra", multiple=True, metavar="OPTION", help="One more option of sbatch (repeat).")
@click.option(
    "--dask",
    type=click.IntRange(1),
    metavar="N",
    help="Instead of --parts: one job, which submits N more as its workers (see --cluster of segment).",
)
def submit_slurm(
    words: tuple[str, ...], parts: int | None, dask: int | None, script: Path | None, dry_run: bool, **wanted: Any
) -> None:
    """Write the script of a job array for SLURM, submit it and print the job's id.

    Each job does its part of the blocks, and the one that ends last makes the outputs. When its time ends or it is
    preempted, a job finishes the blocks under way and is queued again. What `fcn-batch segment` would refuse is refused
    at once.
    """
    from fcn_batch.workflows.submit import Resources, slurm_script

    if (parts is None) == (dask is None):
        raise click.UsageError("Give either --parts N or --dask N.")
    segment = _checked(words)
    if dask is not None:
        segment = segment.given("--cluster=slurm", f"--workers={dask}")
    elif segment.has("--cluster"):
        raise click.UsageError("--cluster submits jobs itself: give --dask N instead of --parts.")
    text = slurm_script(segment, parts, Resources(**wanted))
    _submitted(segment, text, ("sbatch", "--parsable"), None if dry_run else script or _beside(segment, "sbatch"))


@submit.command(
    "pbs",
    context_settings=_OPEN,
    epilog=examples("fcn-batch submit pbs big.tif -o maps/ --parts 8 --cpus 4 --mem 8G --time 04:00:00 --dry-run"),
)
@_job_options("queue")
@click.option("--qsub", "extra", multiple=True, metavar="OPTION", help="One more option of qsub (repeat).")
def submit_pbs(words: tuple[str, ...], parts: int | None, script: Path | None, dry_run: bool, **wanted: Any) -> None:
    """Write the script of a job array for PBS Pro or OpenPBS, submit it and print the job's id.

    Each job does its part of the blocks, and the one that ends last makes the outputs. When the time of a job ends,
    finished blocks are kept: submit again to go on.
    """
    from fcn_batch.workflows.submit import Resources, pbs_script

    if parts is None:
        raise click.UsageError("Give --parts N.")
    segment = _checked(words)
    text = pbs_script(segment, parts, Resources(**wanted))
    _submitted(segment, text, ("qsub",), None if dry_run else script or _beside(segment, "pbs"))


@submit.command(
    "cron", context_settings=_OPEN, epilog=examples("fcn-batch submit cron today.tif -o maps/ --when '30 2 * * *'")
)
@_words
@click.option(
    "--when", default="*/15 * * * *", show_default=True, metavar="TIME", help="Minute, hour, day, month and weekday."
)
def submit_cron(words: tuple[str, ...], when: str) -> None:
    """Print a line for `crontab -e` that gives the segment command at certain times.

    What is done is not done again; two that run at once share the work.
    """
    from fcn_batch.workflows.submit import cron_line

    click.echo(cron_line(_checked(words), when))


def _checked(words: tuple[str, ...]) -> "Segment":
    """The words of a segment command, understood and tried as that would."""
    from fcn_batch.pipeline.core.errors import OptionError
    from fcn_batch.pipeline.core.tolerance import OnError
    from fcn_batch.workflows.inputs.many import inputs_of
    from fcn_batch.workflows.outputs.upload import destination
    from fcn_batch.workflows.plan import Options
    from fcn_batch.workflows.processes.clusters import read_cluster
    from fcn_batch.workflows.submit import Segment, check

    root = click.get_current_context().find_root()
    with segment_command.make_context("segment", list(words), root) as context:  # raises what is wrong
        values = context.params
        raw, _, _ = segment_command.make_parser(context).parse_args(list(words))
    options = []
    for option in segment_command.params:
        if isinstance(option, click.Option) and option.name in raw and option.name != "listed":
            given = raw[option.name]
            options += [_written(option, value) for value in (given if option.multiple else [given])]
    OnError.parse(values["on_error"])
    if values["cluster"] is not None:
        read_cluster(values["cluster"])
    folder, bucket = destination(values["output"], values["work"], local_only=values["local_only"])
    if bucket is not None:
        raise OptionError(
            "bucket-not-for-jobs",
            "-o {bucket}: jobs share a folder; give one, and copy the outputs when they are complete",
            bucket=bucket,
        )
    found = inputs_of(values["inputs"], values["listed"], values["asset"])
    inputs = tuple(one.absolute() if isinstance(one, Path) else one for one in found)
    segment = Segment(tuple(options), inputs, folder and folder.absolute())
    check(segment, Options(**{name: values[name] for name in Options.__dataclass_fields__}))
    return segment


def _written(option: click.Option, value: Any) -> str:
    """An option as one word, which holds in every folder."""
    name = option.opts[-1]
    if option.is_flag:
        return name
    if (
        isinstance(option.type, click.Path)
        or option.name == "output"
        or (option.name in ("model", "cluster") and Path(value).exists())
    ):
        value = Path(value).absolute()
    return f"{name}={value}"


def _beside(segment: "Segment", ending: str) -> Path:
    return segment.home / f"{segment.name}.{ending}"


def _submitted(segment: "Segment", text: str, program: tuple[str, ...], script: Path | None) -> None:
    """Print the script when there is no place for it; else write it, submit it and print the job's id."""
    from fcn_batch.workflows.submit import hand_over, write_script

    if script is None:
        click.echo(text, nl=False)
        return
    segment.home.mkdir(parents=True, exist_ok=True)  # logs go there, and batch systems make no folders
    write_script(script, text)
    click.echo(hand_over(program, script))
    click.echo(f"script {script}", err=True)
