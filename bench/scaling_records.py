"""What `bench.scaling` measured, as plain data: written to and read from `scaling.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Count:
    """A run of so many blocks with an empty network. `workers` 0: in one process, without a scheduler."""

    workers: int
    blocks: int
    whole_s: float
    blocks_s: float
    end_s: float
    driver_cpu_s: float
    driver_peak_mib: float


@dataclass(frozen=True, slots=True)
class Share:
    """A run on so many processes of one thread."""

    workers: int
    mpx: float
    blocks_s: float


@dataclass(frozen=True, slots=True)
class Large:
    """A large raster with an empty network, and the same raster written as COG by GDAL."""

    mpx: float
    whole_s: float
    end_s: float
    peak_mib: float
    gdal_s: float
    gdal_peak_mib: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """Everything that was measured."""

    machine: dict[str, str]
    counts: tuple[Count, ...]
    shares: tuple[Share, ...]
    large: Large | None


def save(scaling: Scaling, path: Path) -> None:
    """Write as JSON."""
    path.write_text(json.dumps(asdict(scaling), indent=1, ensure_ascii=False) + "\n", "utf-8")


def load(path: Path) -> Scaling:
    """Read what `save` wrote."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return Scaling(
        machine=values["machine"],
        counts=tuple(Count(**one) for one in values["counts"]),
        shares=tuple(Share(**one) for one in values["shares"]),
        large=Large(**values["large"]) if values["large"] else None,
    )
