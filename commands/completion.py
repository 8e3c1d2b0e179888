"""`completion`: what a shell needs to complete commands, options and names of models."""

import click
from click.shell_completion import get_completion_class

from fcn_batch.commands.base import Command, examples

SHELLS = ("bash", "zsh", "fish")
_PROGRAM, _VARIABLE = "fcn-batch", "_FCN_BATCH_COMPLETE"


_FILES = """\b
Where shells look:
  bash  ~/.local/share/bash-completion/completions/fcn-batch
  zsh   ~/.zfunc/_fcn-batch, with fpath+=~/.zfunc before compinit in ~/.zshrc
  fish  ~/.config/fish/completions/fcn-batch.fish

"""


@click.command(cls=Command, epilog=_FILES + examples(*(f"fcn-batch completion {shell}" for shell in SHELLS)))
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands, options, models and files.

    Write it with > to where the shell looks for it (make the folder first), and open a new shell.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"This click cannot complete for {shell}.")
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, _PROGRAM, _VARIABLE).source())
