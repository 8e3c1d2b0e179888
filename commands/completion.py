"""`completion`, and what a shell may complete a word to; nothing heavy is loaded for it."""

from importlib.resources import files
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

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


def complete_files(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Files, which the shell itself lists."""
    return [CompletionItem(begun, type="file")]


def complete_folders(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Folders, which the shell itself lists."""
    return [CompletionItem(begun, type="dir")]


def complete_models(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The embedded models, and files: these come first, since bash forgets what stands before them."""
    folder = Path(str(files("fcn_batch.configs"))) / "models"
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    if parameter.default == "auto":
        names.insert(0, "auto")
    found = [CompletionItem(name) for name in names if name.startswith(begun)]
    return complete_files(context, parameter, begun) + found
