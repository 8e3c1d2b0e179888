"""`doctor`: whether all is here that runs need."""

import os
from pathlib import Path

import click

from fcn_batch.commands.base import PATH, Command, echo_pairs, examples


@click.command(cls=Command, epilog=examples("fcn-batch doctor", "fcn-batch doctor --folder /mnt/maps --json"))
@click.option(
    "--folder",
    type=PATH,
    metavar="DIR",
    default=".",
    show_default=True,
    help="Where outputs would go: 64 MiB are written there, timed and removed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
def doctor(folder: Path, as_json: bool) -> None:
    """Tell what is installed, what a run would use here, and what is wrong with it.

    Last comes a line for each problem (runs cannot do without) and each note (they can), with what to do. Exit code 6
    when there is a problem. Passwords in the environment are not shown.
    """
    environ = dict(os.environ)  # libraries add to it when they are loaded
    from fcn_batch.workflows.doctor import examine

    found = examine(folder, environ)
    click.echo(found.to_json()) if as_json else echo_pairs(found.describe())
    if (error := found.error()) is not None:
        raise error
