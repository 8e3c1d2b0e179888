"""`status`: how far runs are."""

from pathlib import Path

import click

from fcn_batch.commands.base import PATH, Command, echo_pairs, examples

_EVERY_S = 2.0


@click.command(cls=Command, epilog=examples("fcn-batch status big_image.tif", "fcn-batch status maps/ --follow"))
@click.argument("output", type=PATH)
@click.option("-f", "--follow", is_flag=True, help="Show it again as it goes on, until nobody is at work any more.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print everything that is known as JSON, a list of runs; with --follow one such list after another.",
)
def status(output: Path, follow: bool, as_json: bool) -> None:
    """Show how far the run of OUTPUT is: blocks done, speed, time left, who is at work, failures.

    OUTPUT is the input, the staging folder NAME.partial or any output of the run; or a folder, for all runs in it. Only
    files are read, so any machine that sees them can ask, also while the run goes on elsewhere.
    Exit code 75 when a run is interrupted and nobody is at work on it.
    """
    from fcn_batch.pipeline.core.errors import StoppedError
    from fcn_batch.pipeline.core.text import printable
    from fcn_batch.workflows.status import following, to_json
    from fcn_batch.workflows.status import status as look

    for found in following(output, _EVERY_S) if follow else [look(output)]:
        if as_json:
            click.echo(to_json(found))
            continue
        for one in found:
            click.echo(printable(one.line())) if follow else echo_pairs(one.describe())
    if waiting := [one.path for one in found if one.phase == "interrupted"]:
        raise StoppedError(
            "run-interrupted", "{path}: interrupted; give its segment command again to go on", path=waiting[0]
        )
