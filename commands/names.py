"""What a shell may complete a word to; nothing heavy is loaded for it."""

from importlib.resources import files
from pathlib import Path

import click
from click.shell_completion import CompletionItem


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
