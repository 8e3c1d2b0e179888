"""What it found to compute windows of a map again: as a table for people, JSON for programs."""

import json
from dataclasses import asdict, dataclass, field

from fcn_batch.pipeline.core.plan import Precision


@dataclass(frozen=True, slots=True)
class Sample:
    """One window, computed again."""

    row: int
    col: int
    height: int
    width: int
    compared: int
    """Pixels that have data in the input, or a class in the map."""
    differ: int
    """Those with another label."""
    ties: int
    """Those of them whose two labels score alike, as far as the precision can tell."""

    @property
    def wrong(self) -> int:
        """Labels that differ and are no ties."""
        return self.differ - self.ties

    def __str__(self) -> str:
        """Place and counts."""
        place = f"rows {self.row}..{self.row + self.height - 1}, cols {self.col}..{self.col + self.width - 1}"
        return f"{place}: {self.compared:,} px, {self.differ:,} differ, {self.ties:,} of them at ties"


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of all windows."""

    run: str
    """The run's report."""
    exact: bool
    """True when the map is that of the whole image in one pass; blended ones are expected to differ."""
    precision: Precision
    seed: int
    samples: tuple[Sample, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """Pixels in all windows."""
        return sum(sample.compared for sample in self.samples)

    @property
    def differ(self) -> int:
        """Labels that differ, in all windows."""
        return sum(sample.differ for sample in self.samples)

    @property
    def ties(self) -> int:
        """Those of them at ties."""
        return sum(sample.ties for sample in self.samples)

    @property
    def ok(self) -> bool:
        """False when an exact map has labels that the network does not give."""
        return not self.exact or self.differ == self.ties

    def to_json(self) -> str:
        """All fields and totals, for programs."""
        totals = {"compared": self.compared, "differ": self.differ, "ties": self.ties, "share": self._share}
        return json.dumps({"ok": self.ok, **totals, **asdict(self)}, indent=2)

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch verify` prints: label and value, one pair a line."""
        return [
            ("run", self.run),
            ("windows", f"{len(self.samples)} at random (seed {self.seed}), {self.compared:,} px"),
            ("differ", f"{self.differ:,} px ({100 * self._share:.4f} %), {self.ties:,} of them at ties"),
            ("result", self._result()),
            *(("window", str(sample)) for sample in self.samples),
            *(("note", note) for note in self.notes),
        ]

    @property
    def _share(self) -> float:
        return self.differ / self.compared if self.compared else 0.0

    def _result(self) -> str:
        if not self.exact:
            return "approximate, as planned: blended tiles see less than a window with all that is around it"
        if not self.ok:
            wrong = self.differ - self.ties
            return f"{wrong:,} label{'s are' if wrong > 1 else ' is'} not what the network gives"
        return "exact: every label is what the network gives" + (", but at ties" if self.ties else "")
