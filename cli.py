"""The program `fcn-batch`: its commands, put together.

Each command parses its options, calls one workflow and prints what comes back. Everything heavy is imported inside
the commands, so that `fcn-batch --help` answers at once.
"""

import click

import fcn_batch
from fcn_batch.commands.base import Group
from fcn_batch.commands.export import export
from fcn_batch.commands.learn import evaluate, train
from fcn_batch.commands.model import model
from fcn_batch.commands.run import plan, segment, validate, verify
from fcn_batch.commands.status import status
from fcn_batch.commands.submit import submit


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fcn_batch.__version__, prog_name="fcn-batch")
def main() -> None:
    """Turn rasters of any size into georeferenced class maps, exactly and restartably."""


for command in (segment, submit, status, plan, validate, verify, export, model, train, evaluate):
    main.add_command(command)

if __name__ == "__main__":
    main()
