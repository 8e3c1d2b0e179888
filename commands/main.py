"""The program `fcn-batch`: its commands, put together.

Each command parses its options, calls one workflow and prints what comes back. Everything heavy is imported inside
the commands, so that `fcn-batch --help` answers at once.
"""

import click

import fcn_batch
from fcn_batch.commands.base import Group
from fcn_batch.commands.completion import completion
from fcn_batch.commands.doctor import doctor
from fcn_batch.commands.export import export
from fcn_batch.commands.learn import evaluate, train
from fcn_batch.commands.model import model
from fcn_batch.commands.run import plan, segment, validate, verify
from fcn_batch.commands.status import status
from fcn_batch.commands.submit import submit

_CODES = """\b
Exit codes (docs/exit-codes.md says what to do):
  0    done
  1    unforeseen: a bug
  2    wrong: the command line or an option
  3    done, but parts of the input could not be read and have no data
  4    wrong: an input
  5    wrong: the model
  6    wrong: an output, its folder or the workers
  7    another run lies there, of other input, model or plan
  8    wrong: labels, recipe or loss of a training
  9    outputs are not what their run made
  75   asked to stop; the same command goes on
  130  interrupted; the same command goes on
"""


@click.group(cls=Group, epilog=_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fcn_batch.__version__, prog_name="fcn-batch")
def main() -> None:
    """Turn rasters of any size into georeferenced class maps, exactly and restartably."""


for command in (segment, submit, status, plan, doctor, validate, verify, export, model, train, evaluate, completion):
    main.add_command(command)
