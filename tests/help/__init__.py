"""The help of every command as it was read last, in a file each; `python -m tests.help` writes them anew."""

from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from fcn_batch.commands.main import main

FOLDER = Path(__file__).parent
WIDTH = 100
AGAIN = "if it should be so, `python -m tests.help` writes it anew; then read what git shows"


def helps() -> Iterator[tuple[str, str]]:
    """Name of the file and text of the program's help and of that of every group and command."""
    for path in _paths(main, ()):
        run = CliRunner().invoke(main, [*path, "--help"], prog_name="fcn-batch", terminal_width=WIDTH)
        yield f"{'-'.join(('fcn-batch', *path))}.txt", run.output


def write() -> None:
    """The files of today, and no others."""
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name, text in helps():
        (FOLDER / name).write_text(text, "utf-8")


def _paths(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _paths(child, (*path, name))
