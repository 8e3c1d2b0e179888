"""Every error a user can meet: one root, one exit code for each kind.

The code is what the shell sees; `docs/exit-codes.md` is the table for people, and a test keeps the two the same.
1 is left to unforeseen errors (a bug), 2 is also click's own for usage errors, 130 is an interrupt from the keyboard.
"""

from typing import ClassVar


class FcnBatchError(Exception):
    """Something the user can mend; the message says what is wrong, the value, and what to do."""

    exit_code: ClassVar[int] = 1


class OptionError(FcnBatchError):
    """An option's value does not fit the raster, the model or another option."""

    exit_code = 2


class InputError(FcnBatchError):
    """The input raster is missing, unreadable or not what the model needs."""

    exit_code = 4


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
