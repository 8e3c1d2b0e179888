"""What all commands share: `--debug`, errors as one line and an exit code, how facts are printed."""

import errno
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from fcn_batch.pipeline.core.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.core.text import printable

PATH = click.Path(path_type=Path)
_Value = TypeVar("_Value")
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Command(click.Command):
    """A command with `--verbose` and `--debug`, whose errors are one line and an exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tell = click.Option(
            ["-v", "--verbose"],
            count=True,
            help="Log what is done on standard error; -vv: also what GDAL and dask do.",
            expose_value=False,
            callback=_heard,
        )
        show = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.", expose_value=False)
        show.callback = lambda ctx, _, value: ctx.meta.update(debug=value)
        self.params += [tell, show]

    def invoke(self, ctx: click.Context) -> Any:
        """Run; turn errors into messages unless `--debug` was given."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise  # click's own; of a closed pipe it makes a quiet end
        except KeyboardInterrupt:
            _tell("interrupted; run the same command again to go on")
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if ctx.meta["debug"]:
                traceback.print_exc()
            message, code = f"unforeseen error: {type(error).__name__}: {error}; --debug shows where", 1
            if isinstance(error, FcnBatchError):
                message, code = str(error), error.exit_code
            elif isinstance(error, OSError) and error.errno in _FULL and error.filename is None:  # no file of ours
                message = f"standard output cannot be written ({error.strerror}); make room, or send it elsewhere"
                code = OutputError.exit_code
            _tell(message)
            raise SystemExit(code) from error  # not ctx.exit: click's newest would lose the error, which tests look at


def _heard(context: click.Context, _option: click.Parameter, verbose: int) -> None:
    """Log from here to the end of the command."""
    if verbose and not context.resilient_parsing:
        from fcn_batch.workflows.console.logs import heard

        context.with_resource(heard(verbose, context.command_path))


def _tell(message: str) -> None:
    with suppress(OSError):  # a terminal that is closed, or a log on a full disk: the exit code says it still
        click.echo(f"fcn-batch: {printable(' '.join(message.splitlines()))}", err=True)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run; what click itself says repeats the command line, and so names of files."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)  # type: ignore[misc]  # final, but in name only
            if isinstance(error.__cause__, FcnBatchError):
                error.show()
                raise SystemExit(error.exit_code) from error.__cause__  # as above
            raise


Group.group_class = Group


def parameter(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """`parse` as the type of an option: what it refuses is a bad parameter of that option."""

    def parsed(text: str) -> _Value:
        try:
            return parse(text)
        except OptionError as error:
            raise click.BadParameter(str(error)) from error

    return parsed


def echo_pairs(pairs: list[tuple[str, str]]) -> None:
    """Print labels and values, one pair a line."""
    for label, value in pairs:
        click.echo(f"{printable(label):<12} {printable(value)}")


def echo_path(path: object) -> None:
    """Print the path of what was written: as it is for programs, safely for people, nowhere if nowhere is."""
    for_people = sys.stdout is not None and sys.stdout.isatty()
    click.echo(printable(str(path)) if for_people else path)


def examples(*calls: str) -> str:
    """The end of a help text: calls of the program."""
    return "\n  ".join([f"\b\nExample{'s'[: len(calls) - 1]}:", *calls])
