"""The exit codes in the code and the ones promised in the documentation are the same."""

import re
from pathlib import Path

from fcn_batch.pipeline.core.errors import FcnBatchError

TABLE = Path(__file__).parents[1] / "docs" / "exit-codes.md"
# codes without an exception: done, done with masked blocks, stopped and resumable
WITHOUT_ERROR = {0, 130}


def _documented() -> list[tuple[int, str]]:
    return [
        (int(code), name)
        for code, name in re.findall(r"^\| *(\d+) \| (?:`(\w+)`|–) \|", TABLE.read_text("utf-8"), re.MULTILINE)
    ]


def _family(error: type[FcnBatchError]) -> list[type[FcnBatchError]]:
    return [error, *(member for child in error.__subclasses__() for member in _family(child))]


def test_the_table_lists_every_error_and_no_other() -> None:
    rows = [(code, name) for code, name in _documented() if name]
    # the suite may define errors of its own: only the package's count, and of these the ones with a code of their own
    package = [e for e in _family(FcnBatchError) if e.__module__.startswith("fcn_batch.")]
    family = [e for e in package if "exit_code" in vars(e)]
    assert sorted(rows) == sorted((error.exit_code, error.__name__) for error in family)


def test_the_table_lists_the_codes_without_an_error() -> None:
    assert {code for code, name in _documented() if not name} == WITHOUT_ERROR


def test_no_code_means_two_things() -> None:
    codes = [code for code, _ in _documented()]
    assert codes == sorted(set(codes))
