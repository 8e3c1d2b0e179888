"""Nobody changes what a command's help says without seeing it: `tests/help/` holds each one."""

from importlib.metadata import version
from pathlib import Path

import pytest

import tests.help
from tests.help import AGAIN, FOLDER, helps, write

HELPS = dict(helps())


@pytest.mark.parametrize("name", HELPS)
def test_the_help_is_as_it_was_read_last(name: str) -> None:
    file = FOLDER / name
    assert file.is_file(), f"{name} is not there: {AGAIN}"
    then = file.read_text("utf-8")
    assert HELPS[name] == then, f"{name} differs (here with click {version('click')}): {AGAIN}"


def test_there_are_no_files_of_other_commands() -> None:
    assert {path.name for path in FOLDER.glob("*.txt")} == set(HELPS), AGAIN


def test_no_line_is_wider_than_the_terminal() -> None:
    examples = "  fcn-batch "  # are not broken
    wide = [line for text in HELPS.values() for line in text.splitlines() if len(line) > tests.help.WIDTH]
    assert [line for line in wide if not line.lstrip().startswith(examples.strip())] == []


def test_they_can_be_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.txt").touch()
    monkeypatch.setattr("tests.help.FOLDER", tmp_path)
    write()
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == HELPS
