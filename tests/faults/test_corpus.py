"""Files that once ended the program with a traceback, a wrong map or all memory taken: never again.

Each is a folder, corpus/TARGET/NAME; what is in it is laid over what the fuzzer's target begins with (see fuzz.py).
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.faults.fuzz import CORPUS

pytestmark = pytest.mark.timeout(600)  # half a minute of one processor, which others may be using
MOST_BYTES = 4096
CASES = sorted(CORPUS.glob("*/*"))
CODES = {"raster": 4, "model": 5, "staging": 0, "store": 4, "validate": 9}
"""How a run on a case of this target ends: with the true map where only the staging folder was damaged."""
OTHERS = {"place-beyond-all-numbers": 0}
"""Cases that end otherwise: a map needs no place on the Earth."""


def test_cases_are_small_and_whole() -> None:
    assert len(CASES) >= 10
    for case in CASES:
        sizes = [file.stat().st_size for file in case.rglob("*") if file.is_file()]
        assert sizes, case
        assert max(sizes) < MOST_BYTES, case


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """Of all cases, from a program of its own: a process that has used torch cannot be forked safely."""
    command = [sys.executable, "-m", "tests.faults.fuzz", "--json", "--corpus"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert done.stdout, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_what_did_harm_does_none_now(results: list[dict[str, Any]]) -> None:
    assert len(results) == len(CASES)
    told = zip(CASES, results, strict=True)
    assert [(case.name, result["complaints"]) for case, result in told if result["complaints"]] == []


def test_each_ends_as_its_kind_should(results: list[dict[str, Any]]) -> None:
    for case, result in zip(CASES, results, strict=True):
        assert result["target"] == case.parent.name
        assert result["code"] == OTHERS.get(case.name, CODES[case.parent.name]), case
