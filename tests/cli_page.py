"""`python -m tests.cli_page` writes docs/cli.md from what the commands say of themselves."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from fcn_batch.commands.main import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMAND = "python -m tests.cli_page"
_HEAD = f"""# Commands

Written by `{COMMAND}` from the program's help texts; do not edit. `fcn-batch COMMAND --help` says the same
in a terminal. What the shell is told at the end: [exit codes](exit-codes.md).
"""


def page() -> str:
    """The page as Markdown: every command, its arguments and options, in the order of `--help`."""
    root = click.Context(main, info_name="fcn-batch", **main.context_settings)
    return "\n".join([_HEAD, *(line for context in _contexts(root) for line in _command(context))])


def _contexts(parent: click.Context) -> Iterator[click.Context]:
    """A context for every command that does something, the deepest commands included."""
    group = parent.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from _contexts(context)
        elif not command.hidden:
            yield context


def _command(context: click.Context) -> Iterator[str]:
    command = context.command
    yield f"## {context.command_path}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    yield from _prose(command.help or "")
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    yield "| Option | |\n| --- | --- |"
    yield from (f"| {_option(names)} | {_escaped(text)} |" for names, text in records)
    yield ""
    yield from _prose(command.epilog or "")


def _prose(text: str) -> Iterator[str]:
    r"""Paragraphs; those that click must not wrap (`\b`) as they are: a heading, and calls below it."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[:1] != ["\b"]:
            yield f"{_escaped(' '.join(lines))}\n" if lines else ""
            continue
        heading, *calls = lines[1:]
        yield f"{_escaped(heading)}\n\n```text\n{chr(10).join(calls)}\n```\n"


def _option(names: str) -> str:
    return f"`{names.replace('|', chr(0x2223))}`"  # the bar would end the table's cell, in code too


def _escaped(text: str) -> str:
    """Nothing in it means anything in Markdown, but for code that was marked."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([\\*_<>|\[\]])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
