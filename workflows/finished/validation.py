"""What it found to read the outputs of a run again: a line for each check for people, JSON for programs."""

import json
from dataclasses import asdict, dataclass

_TOLD = 5
"""Faults of a check that people are told of one by one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    """What is right, when nothing is wrong."""
    faults: tuple[str, ...] = ()
    """What is wrong, and where."""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults


@dataclass(frozen=True, slots=True)
class Validation:
    """All checks of the outputs of one run."""

    run: str
    """The run's report."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong in any of them."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> str:
        """All checks with all faults, for programs."""
        checks = [{"ok": check.ok, **asdict(check)} for check in self.checks]
        return json.dumps({"ok": self.ok, "run": self.run, "checks": checks}, indent=2)

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch validate` prints: name of the check, and ok or FAIL with what was found."""
        pairs = [("run", self.run)]
        for check in self.checks:
            if check.ok:
                pairs.append((check.name, f"ok    {check.found}"))
            pairs += [(check.name, f"FAIL  {fault}") for fault in check.faults[:_TOLD]]
            if len(check.faults) > _TOLD:
                pairs.append((check.name, f"FAIL  and {len(check.faults) - _TOLD:,} more; --json lists all"))
        return pairs
