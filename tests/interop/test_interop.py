"""Every reader on every layout of every kind of input: it sees what `expected.py` says, no less and no more."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.expected import ALL, RULES, find
from tests.interop.maps import KINDS, LAYOUTS, make
from tests.interop.matrix import Cell, try_out
from tests.interop.readers import Reader, readers

RESULT = "INTEROP_RESULT"
"""Environment variable: file to write what was seen to, as JSON."""
FOUND, MISSING = readers()
READERS = [pytest.param(one, id=f"{one.name} {one.version}") for one in FOUND] + [
    pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name}: {why}")) for name, why in MISSING.items()
]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, filled as maps are asked for."""
    folder = tmp_path_factory.mktemp("maps")
    for kind in KINDS:
        (folder / kind).mkdir()
    return folder


@pytest.fixture(scope="module")
def seen() -> Iterator[list[dict[str, Any]]]:
    """What was seen; written where the environment says, also when tests failed."""
    cells: list[dict[str, Any]] = []
    yield cells
    if RESULT in os.environ:
        result = {"python": ".".join(str(part) for part in sys.version_info[:2]), "missing": MISSING, "cells": cells}
        Path(os.environ[RESULT]).write_text(json.dumps(result, indent=1) + "\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_seen(reader: Reader, layout: str, kind: str, maps: Path, seen: list[dict[str, Any]]) -> None:
    if layout == "COG" and reader.stores_only:
        pytest.skip(f"{reader.name} reads zarr only")
    cell: Cell = try_out(reader, make(kind, layout, maps / kind))
    rule = find(reader.name, reader.gdal, layout, kind)
    place = {"reader": reader.name, "version": reader.version, "gdal": reader.gdal, "layout": layout, "kind": kind}
    seen.append({**place, "letters": cell.letters})
    if rule is None:
        pytest.skip(f"{reader.name} {reader.version} was never measured; it sees {cell.letters}")
    assert cell.letters == rule.letters, f"{cell.error} (expected: {rule.why})"


def test_what_is_not_all_has_a_reason() -> None:
    assert [rule for rule in RULES if not rule.why and not rule.letters.startswith(ALL)] == []
