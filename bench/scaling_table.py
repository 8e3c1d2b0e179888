"""The section on scaling in `RESULTS.md`, its plot, and what the measured costs mean for far more workers."""

import heapq
from dataclasses import dataclass
from pathlib import Path

from bench.scaling_records import Count, Scaling

BLOCKS = 1_000_000
BLOCK_S = 1.0
WORKERS = (1, 10, 100, 1_000, 10_000)
_MPX_PER_BLOCK = 2048 * 2048 / 1e6


@dataclass(frozen=True, slots=True)
class Costs:
    """What a block costs beside the network, measured."""

    worker_s: float
    """Where it is done: claim, write, receipt."""
    driver_s: float
    """CPU of the process that holds the scheduler, for each block."""
    end_s_per_mpx: float
    """Comparing with receipts and writing the GeoTIFF, which one process does at the end."""


def slope(counts: tuple[Count, ...], workers: int, what: str) -> float:
    """Seconds for each block more, between the two largest runs: what starting takes falls out."""
    known = sorted((c.blocks, float(getattr(c, what))) for c in counts if c.workers == workers)[-2:]
    (few, least), (many, most) = known
    return (most - least) / (many - few)


def costs(scaling: Scaling) -> Costs:
    """The constants of the simulation."""
    large = scaling.large
    return Costs(
        worker_s=slope(scaling.counts, 0, "blocks_s"),
        driver_s=max(0.0, slope(scaling.counts, 1, "driver_cpu_s")),
        end_s_per_mpx=large.end_s / large.mpx if large else 0.0,
    )


def simulate(blocks: int, workers: int, costs: Costs, *, scheduler: bool) -> float:
    """Seconds until the last block is done: each worker goes on at once, one driver hears of each block in turn.

    Without a scheduler there is nobody to wait for. The end, by one process, is not counted.
    """
    block_s = BLOCK_S + costs.worker_s
    free, driver = [0.0] * min(workers, blocks), 0.0
    for _ in range(blocks):
        done = heapq.heappop(free) + block_s
        if scheduler:  # a worker that is told of its next block only when the driver comes to it
            driver = max(driver, done) + costs.driver_s
            done = max(done, driver - costs.driver_s)
        heapq.heappush(free, done)
    return max(*free, driver)


def section(scaling: Scaling) -> str:
    """Markdown: costs, shares, the large raster, the simulation."""
    found = costs(scaling)
    parts = ["## Scaling", _intro(scaling), _targets(scaling, found), _counts(scaling), _shares(scaling)]
    parts += [_large(scaling), _simulation(found), "![Cost of a block](SCALING.svg)"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _intro(scaling: Scaling) -> str:
    machine = ", ".join(f"{scaling.machine[key]}" for key in ("Date", "CPU", "Memory", "Versions"))
    return (
        f"Written by `python -m bench.scaling` ({machine}). An *empty network* has one weight for each band and class: "
        "what is measured is everything else. Blocks have 64 x 64 pixels in the first table, so that their pixels cost "
        "nothing either; the smallest that users can ask for have 2048 x 2048."
    )


def _targets(scaling: Scaling, found: Costs) -> str:
    rows = [("Orchestration of a block of 1 s, percent", "≤ 1", 100 * (found.worker_s + found.driver_s) / BLOCK_S, 1.0)]
    peaks = {c.blocks: c.driver_peak_mib for c in scaling.counts if c.workers == 2}
    if len(peaks) > 1:
        most = max(peaks)
        growth = 100 * (peaks[most] / peaks[sorted(peaks)[-2]] - 1)
        rows.append((f"Growth of the scheduler's memory up to {most:,} blocks, percent", "≤ 2", growth, 2.0))
    lines = [f"| {text} | {aim} | {value:.2f} | {_yes(value <= bound)} |" for text, aim, value, bound in rows]
    speeds = {share.workers: share.blocks_s for share in scaling.shares}
    gain = speeds[1] / speeds[2]
    lines.append(f"| Two workers of one thread / one | ≥ 1.8 | {gain:.2f} | {_yes(gain >= 1.8)} |")
    if large := scaling.large:
        for text, aim, value in (
            ("Whole time with an empty network / GDAL's to COG", 1.3, large.whole_s / large.gdal_s),
            ("Peak memory / GDAL's", 2.0, large.peak_mib / large.gdal_peak_mib),
        ):
            lines.append(f"| {text}, {large.mpx:,.0f} Mpx | ≤ {aim} | {value:.2f} | {_yes(value <= aim)} |")
    return "\n".join(["| What | Target | Measured | Reached |", "| --- | --- | --- | --- |", *lines])


def _yes(reached: bool) -> str:  # noqa: FBT001 - a word for a truth value
    return "yes" if reached else "no"


def _counts(scaling: Scaling) -> str:
    head = "| Run on | Blocks | Blocks, s | Each, ms | End, s | CPU of driver and scheduler, s | Its peak, MiB |"
    lines = [
        f"| {_place(c.workers)} | {c.blocks:,} | {c.blocks_s:.2f} | "
        f"{1e3 * c.blocks_s / c.blocks:.2f} | {c.end_s:.2f} | {c.driver_cpu_s:.2f} | {c.driver_peak_mib:.0f} |"
        for c in scaling.counts
    ]
    return "\n".join(["### Cost of a block", "", head, "| --- " * 7 + "|", *lines])


def _place(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}" if workers else "this process"


def _shares(scaling: Scaling) -> str:
    one = scaling.shares[0]
    head = "| Workers, one thread each | Blocks, s | Mpx/s | Times one | Efficiency, percent |"
    lines = [
        f"| {s.workers} | {s.blocks_s:.1f} | {s.mpx / s.blocks_s:.2f} | {one.blocks_s / s.blocks_s:.2f} | "
        f"{100 * one.blocks_s / s.blocks_s / s.workers:.0f} |"
        for s in scaling.shares
    ]
    return "\n".join([f"### More processes ({one.mpx:,.0f} Mpx)", "", head, "| --- " * 5 + "|", *lines])


def _large(scaling: Scaling) -> str:
    if (large := scaling.large) is None:
        return ""
    head = f"### {large.mpx:,.0f} Mpx with an empty network\n\n| | Whole, s | Peak, MiB |\n| --- | --- | --- |\n"
    ours = (
        f"| fcn-batch segment (of these {large.end_s:.0f} s at the end) | {large.whole_s:.1f} | {large.peak_mib:.0f} |"
    )
    return f"{head}{ours}\n| GDAL, the same raster to COG | {large.gdal_s:.1f} | {large.gdal_peak_mib:.0f} |"


def _simulation(found: Costs) -> str:
    head = "| Workers | With a scheduler, h | Efficiency, percent | Parts without one, h | Efficiency, percent |"
    lines = []
    for workers in WORKERS:
        ideal = BLOCKS * BLOCK_S / workers
        with_one, without = (simulate(BLOCKS, workers, found, scheduler=scheduler) for scheduler in (True, False))
        lines.append(
            f"| {workers:,} | {with_one / 3600:.2f} | {100 * ideal / with_one:.1f} | {without / 3600:.2f} | "
            f"{100 * ideal / without:.1f} |"
        )
    end = BLOCKS * _MPX_PER_BLOCK * found.end_s_per_mpx / 3600
    text = (
        f"### {BLOCKS:,} blocks of {BLOCK_S:g} s, simulated\n\nFrom the costs above: {1e3 * found.worker_s:.2f} ms a "
        f"block where it is done, {1e3 * found.driver_s:.2f} ms at the driver, which one thread does for all. "
        "Writing the GeoTIFF of so many blocks of 2048 x 2048 pixels would take one "
        f"process {end:.1f} h more."
    )
    return "\n".join([text, "", head, "| --- " * 5 + "|", *lines])


def plot(scaling: Scaling, path: Path) -> None:
    """Draw the cost of a block by their number, and the speed by workers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "fcn-batch"  # the same numbers make the same file
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for workers in sorted({c.workers for c in scaling.counts}):
        counts = [c for c in scaling.counts if c.workers == workers]
        left.loglog(
            [c.blocks for c in counts], [1e3 * c.blocks_s / c.blocks for c in counts], marker="o", label=_place(workers)
        )
    left.set_xlabel("blocks")
    left.set_ylabel("ms for each, start-up included")
    left.legend()
    numbers = [s.workers for s in scaling.shares]
    right.plot(numbers, [scaling.shares[0].blocks_s / s.blocks_s for s in scaling.shares], marker="o", label="measured")
    right.plot(numbers, numbers, linestyle="--", color="black", linewidth=1, label="ideal")
    right.set_xlabel(f"workers of one thread ({scaling.machine.get('CPU', '')})")
    right.set_ylabel("times as fast as one")
    right.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
