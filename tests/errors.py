"""Errors in tests: their code and fields are looked at, never their wording (`tests/messages.txt` holds that)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import Result

from fcn_batch.pipeline.core.errors import FcnBatchError


@contextmanager
def refuses(code: str, /, **fields: object) -> Iterator[None]:
    """The block must raise the error of this code; each named field, as text, must have this value."""
    with pytest.raises(FcnBatchError) as caught:
        yield
    _check(caught.value, code, fields)


def refused(result: Result, code: str, /, **fields: object) -> FcnBatchError:
    """Return the error by which a command ended: of this code and these fields, in one line, with its exit code."""
    error = error_of(result)
    _check(error, code, fields)
    assert result.exit_code == error.exit_code
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("fcn-batch: ", "Error: "))]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return error


def error_of(result: Result) -> FcnBatchError:
    """Return the error that a command ended with, which click turned into an exit code."""
    error = None if result.exc_info is None else result.exc_info[1]
    while error is not None and not isinstance(error, FcnBatchError):
        error = error.__cause__ or error.__context__
    assert isinstance(error, FcnBatchError), result.output
    return error


def _check(error: FcnBatchError, code: str, fields: dict[str, object]) -> None:
    assert error.code == code, f"{error.code}: {error}"
    assert {name: str(error.fields.get(name)) for name in fields} == {name: str(v) for name, v in fields.items()}
