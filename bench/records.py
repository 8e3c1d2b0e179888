"""What was measured, as plain data: written to and read from `results.json`. No heavy imports here."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PLAIN = "plain forward"
"""The system whose seconds per pixel are the unit of all ratios."""
OURS = "fcn-batch"
"""Prefix of the names of our own rows."""

MARK = "<!-- scaling -->"
"""In RESULTS.md: what stands below was written by `bench.scaling`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one system on one raster; None where a number does not apply or the run failed."""

    section: str
    """speed, memory or labels."""
    system: str
    model: str
    precision: str
    height: int
    width: int
    device: str = "cpu"
    wall_s: float | None = None
    """From the start of the process to its end."""
    inner_s: float | None = None
    """Reading, network and writing, without starting Python and loading libraries and weights."""
    cpu_s: float | None = None
    peak_mib: float | None = None
    passes: float | None = None
    """Pixels that went through the network for each pixel of the raster."""
    differing: int | None = None
    """Pixels whose class is not that of the whole image in float32."""
    failed: str = ""
    """Why there are no numbers, in one line."""

    @property
    def mpx(self) -> float:
        """Megapixels."""
        return self.height * self.width / 1e6


@dataclass(frozen=True, slots=True)
class Results:
    """All of one run of `python -m bench.run`."""

    machine: dict[str, str]
    """Label and value, in the order they are shown."""
    gflops: dict[str, float]
    """The fastest matrix product or convolution of the machine, GFLOP/s, by precision."""
    mflop_per_px: dict[str, float]
    """Cost of one forward pass, by model."""
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    quick: bool = False
    notes: tuple[str, ...] = field(default=())

    def unit(self, model: str, precision: str, device: str = "cpu") -> float | None:
        """Seconds per megapixel of the plain forward at its best size; None when it was not measured."""
        wanted = (PLAIN, model, precision, device)
        rows = [r for r in self.rows if (r.system, r.model, r.precision, r.device) == wanted]
        return min((r.inner_s / r.mpx for r in rows if r.inner_s), default=None)

    def ratio(self, row: Row, *, whole: bool) -> float | None:
        """Seconds per pixel of a run (with start-up, if `whole`) as a multiple of the plain forward's."""
        seconds = row.wall_s if whole else row.inner_s
        unit = self.unit(row.model, row.precision, row.device)
        return seconds / row.mpx / unit if seconds and unit else None

    def share(self, row: Row) -> float | None:
        """Share of the machine's matrix rate that a run reached end to end, counting each pixel once."""
        seconds = row.wall_s or row.inner_s
        peak = self.gflops.get(row.precision)
        cost = self.mflop_per_px.get(row.model)
        if not (seconds and peak and cost) or row.device != "cpu":
            return None
        return cost * row.mpx * 1e3 / seconds / peak  # MFLOP/px x Mpx = 1e3 GFLOP


def save(results: Results, path: Path) -> None:
    """Write as JSON."""
    path.write_text(json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n", "utf-8")


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    values["rows"] = tuple(Row(**row) for row in values["rows"])
    values["notes"] = tuple(values["notes"])
    return Results(**values)
