"""The lowest versions that pyproject.toml admits, as pip wants them: `python -m tests.lowest > constraints.txt`.

`make test-lowest` installs exactly these, so that a bound which has become untrue is noticed.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=|==)\s*(?P<version>[0-9][0-9.]*)")


def pin(requirement: str) -> str:
    """The requirement's name and its first bound; without extras, which constraints must not have.

    >>> pin("dask[distributed]>=2025.1")
    'dask==2025.1'
    """
    found = _BOUND.match(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound: write it as name>=version")
    return f"{found['name']}=={found['version']}"


def pins(pyproject: Path = PYPROJECT) -> list[str]:
    """A pin for each runtime dependency."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    return [pin(requirement) for requirement in project["dependencies"]]


if __name__ == "__main__":
    sys.stdout.write("\n".join(pins()) + "\n")
