"""Every error a user can meet: one root, one exit code for each kind.

The code is what the shell sees; `docs/exit-codes.md` is the table for people, and a test keeps the two the same.
1 is left to unforeseen errors (a bug), 2 is also click's own for usage errors, 75 is "try again later" in sysexits.h
(batch systems requeue on it), 130 is an interrupt from the keyboard.

An error carries a code, a stable word such as ``input-missing``, and the fields of its message. Programs and tests
look at these; the wording may change. ``tests/messages.txt`` lists all codes with their texts.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

_Error = TypeVar("_Error", bound="FcnBatchError")


class FcnBatchError(Exception):
    """An error that the user can correct.

    `template` is the message: what is wrong, the value, and what to do, with a ``{name}`` for each of `fields`.

    >>> error = InputError("input-missing", "{path} does not exist; check the name", path="a.tif")
    >>> str(error), error.code, error.fields["path"]
    ('a.tif does not exist; check the name', 'input-missing', 'a.tif')
    """

    exit_code: ClassVar[int] = 1
    code: str
    fields: dict[str, Any]

    def __init__(self, code: str, template: str, /, **fields: Any) -> None:
        super().__init__(template.format(**fields))
        self.code, self.fields = code, fields

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Errors travel between processes; fields that might not are sent as text."""
        plain = {name: v if isinstance(v, int | float | str) else str(v) for name, v in self.fields.items()}
        return _received, (type(self), str(self), self.code, plain)


def _received(kind: type[_Error], message: str, code: str, fields: dict[str, Any]) -> _Error:
    """Return the error that another process sent."""
    error = kind.__new__(kind, message)
    error.code, error.fields = code, fields
    return error


class OptionError(FcnBatchError):
    """An option's value does not fit the raster, the model or another option."""

    exit_code = 2


class UnreadableError(FcnBatchError):
    """The map is complete, but parts of the input could not be read and are no data in it."""

    exit_code = 3


class InputError(FcnBatchError):
    """The input raster is missing, unreadable or not what the model needs."""

    exit_code = 4


class DecodingError(InputError):
    """Some pixels of an input that can be opened cannot be read."""


class FormatError(InputError):
    """An input of a format that whoever tried to open it does not know; another one may."""


class ModelError(FcnBatchError):
    """The model file is missing, not a model, damaged, or changed during the run."""

    exit_code = 5


class OutputError(FcnBatchError):
    """An output exists already, cannot be written where it was asked for, or those who write it were lost."""

    exit_code = 6


class MismatchError(FcnBatchError):
    """An interrupted run lies here that was made from another input, model or plan."""

    exit_code = 7


class TrainingError(FcnBatchError):
    """Training cannot start or go on: labels, recipe or loss are at fault."""

    exit_code = 8


class IntegrityError(FcnBatchError):
    """Outputs are not what their run made, or not what its network gives."""

    exit_code = 9


class StoppedError(FcnBatchError):
    """A signal asked the run to stop; what is finished is kept."""

    exit_code = 75
