"""The exit codes in the code and the ones promised in the documentation are the same."""

import pickle
import re
from pathlib import Path

from fcn_batch.pipeline.core.errors import FcnBatchError, InputError
from tests.messages import APPROVED, approved, messages

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


def test_the_table_lists_every_code_once() -> None:
    documented = _documented()
    codes = [code for code, _ in documented]
    assert codes == sorted(set(codes)), "no code means two things"
    assert {code for code, name in documented if not name} == WITHOUT_ERROR
    # the suite may define errors of its own: only the package's count, and of these the ones with a code of their own
    package = [e for e in _family(FcnBatchError) if e.__module__.startswith("fcn_batch.")]
    family = [e for e in package if "exit_code" in vars(e)]
    assert sorted((c, n) for c, n in documented if n) == sorted((error.exit_code, error.__name__) for error in family)


def test_the_texts_are_the_approved_ones() -> None:
    """After a look at the change: python -m tests.messages."""
    assert APPROVED.read_text("utf-8") == approved()


def test_every_error_has_a_code_of_its_kind_and_a_template_with_its_fields() -> None:
    found = messages()
    assert [one.where for one in found if one.code is None or one.template is None] == []
    assert [one for one in found if one.names != one.fields] == []
    assert [one for one in found if not re.fullmatch(r"[a-z0-9-]+", str(one.code))] == []
    assert len({one.code for one in found}) == len({(one.code, one.kind) for one in found})


def test_an_error_is_the_same_after_a_journey() -> None:
    error = InputError("input-missing", "{path} does not exist; {n:,} others do", path=Path("a.tif"), n=1000)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of this process
    assert (type(again), str(again), again.code) == (InputError, "a.tif does not exist; 1,000 others do", error.code)
    assert again.fields == {"path": "a.tif", "n": 1000}
