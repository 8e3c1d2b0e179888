"""Bugs planted in the source one at a time, to see that the tests of its subject fail; `python -m tests.mutants`.

Each mutant is a file `NAME.patch`: header lines, then a unified diff of the source.

    Subject: the promise that breaks
    Area: exactness, place, validity, faults or publishing
    Tests: arguments for pytest: files, or files with -k
    Hangs: yes                                      only where the tests find it by running into the time-out

`NAME.2.patch`, if it is there, is tried where `NAME.patch` does not apply: the source moves on while mutants stay.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
AREAS = ("exactness", "place", "validity", "faults", "publishing")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug."""

    name: str
    subject: str
    area: str
    tests: tuple[str, ...]
    """Arguments for pytest."""
    hangs: bool
    """True when running out of time counts as caught."""
    patches: tuple[Path, ...]
    """The first that applies is taken."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a mutant from its first patch. ValueError when a header is missing or means nothing."""
        head = dict(re.findall(r"^(\w+): (.*)$", path.read_text().partition("\n--- ")[0], re.MULTILINE))
        if not {"Subject", "Area", "Tests"} <= head.keys() or head["Area"] not in AREAS:
            raise ValueError(f"{path}: needs Subject, Tests, and an Area of {', '.join(AREAS)}")
        second = path.with_suffix(".2.patch")
        patches = (path, second) if second.exists() else (path,)
        hangs = head.get("Hangs") == "yes"
        return cls(path.stem, head["Subject"], head["Area"], tuple(shlex.split(head["Tests"])), hangs, patches)


def mutants() -> dict[str, Mutant]:
    """Return all mutants by name, area by area."""
    found = [Mutant.read(path) for path in sorted(HERE.glob("*.patch")) if not path.name.endswith(".2.patch")]
    return {mutant.name: mutant for mutant in sorted(found, key=lambda mutant: AREAS.index(mutant.area))}
