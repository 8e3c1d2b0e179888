"""`RESULTS.md` from the numbers: what was aimed at and reached, then speed, memory and labels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.records import OURS, PLAIN, Results, Row
from bench.systems import LAND, MODELS, MONAI, MONAI_BEST, NARROW, NOTES, RESNET, VGG


@dataclass(frozen=True, slots=True)
class Target:
    """A number that is aimed at: at most `bound`, or at least."""

    text: str
    bound: float
    reached: Callable[[Results], float | None]
    form: str = "{:.2f}"
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound


def _largest(results: Results, precision: str, device: str = "cpu") -> Row | None:
    """Our whole command on the largest raster."""
    rows = [r for r in results.rows if (r.section, r.system, r.model, r.device) == ("speed", OURS, VGG, device)]
    return max((r for r in rows if r.precision == precision and r.wall_s), key=lambda r: r.mpx, default=None)


def _against_plain(results: Results, precision: str, device: str = "cpu") -> float | None:
    """Its wall time as a multiple of the plain forward's."""
    row = _largest(results, precision, device)
    return None if row is None else results.ratio(row, whole=True)


def _rate_share(results: Results) -> float | None:
    """Percent of the machine's matrix rate in bf16 that it reaches end to end."""
    row = _largest(results, "bf16")
    share = None if row is None else results.share(row)
    return None if share is None else 100 * share


def _rough_share(results: Results) -> float | None:
    """Percent of labels of our runs in bf16 that are not the whole image's in float32."""
    rows = [r for r in results.rows if (r.section, r.system, r.precision) == ("labels", OURS, "bf16")]
    return _percent([r for r in rows if r.differing is not None])


def _exact_share(results: Results) -> float | None:
    """Percent of labels of our exact runs in float32 that are not the whole image's."""
    rows = [r for r in results.rows if r.section == "labels" and r.precision == "fp32" and r.differing is not None]
    return _percent([r for r in rows if r.system.startswith(OURS) and "overlap" not in r.system])


def _percent(rows: list[Row]) -> float | None:
    return 1e-4 * sum(r.differing or 0 for r in rows) / sum(r.mpx for r in rows) if rows else None


def growth(rows: Iterable[Row]) -> float | None:
    """Bytes of peak memory for each pixel more, between the two largest rasters; None without two."""
    known = sorted((r.mpx, r.peak_mib) for r in rows if r.peak_mib is not None)[-2:]
    if len(known) < 2 or known[0][0] == known[1][0]:
        return None
    (smaller, least), (larger, most) = known
    return (most - least) * 2**20 / ((larger - smaller) * 1e6)


def _our_growth(results: Results) -> float | None:
    """Percent that the peak grows between our two largest rasters."""
    rows = [r for r in results.rows if r.section == "memory" and r.system == OURS and r.peak_mib]
    peaks = [r.peak_mib or 0.0 for r in sorted(rows, key=lambda r: r.mpx)[-2:]]
    return 100 * (peaks[1] / peaks[0] - 1) if len(peaks) == 2 else None


def _cpu_of(results: Results, system: str) -> float | None:
    """CPU time of a peer as a multiple of ours, on the raster that all of them worked on, in fp32."""
    rows = {r.system: r for r in results.rows if (r.section, r.model, r.precision) == ("speed", VGG, "fp32")}
    theirs = rows.get(system)
    ours = [r for r in results.rows if (r.section, r.system, r.model, r.precision) == ("speed", OURS, VGG, "fp32")]
    same = [r for r in ours if theirs is not None and r.height == theirs.height and r.cpu_s]
    return theirs.cpu_s / (same[0].cpu_s or 1) if theirs is not None and theirs.cpu_s and same else None


TARGETS = (
    Target(
        "Labels that differ from the whole image, exact ways, fp32, percent (ties excepted)", 0, _exact_share, "{:.5f}"
    ),
    Target("Labels that differ from the whole image in fp32, bf16, percent", 0.5, _rough_share, "{:.3f}"),
    Target(
        "Wall time of the whole command / plain forward, largest raster, bf16", 0.6, lambda r: _against_plain(r, "bf16")
    ),
    Target(
        "Wall time of the whole command / plain forward, largest raster, fp32", 1.0, lambda r: _against_plain(r, "fp32")
    ),
    Target("Share of the machine's matrix rate, end to end, bf16, percent", 75, _rate_share, "{:.0f}", at_least=True),
    Target("CPU time of MONAI at its default / ours", 2, lambda r: _cpu_of(r, MONAI.name), at_least=True),
    Target("CPU time of MONAI at its best / ours", 1.2, lambda r: _cpu_of(r, MONAI_BEST.name), at_least=True),
    Target("Growth of our peak memory from 8192² to 16384², percent", 2, _our_growth),
    Target(
        "On a GPU: wall time of the whole command / plain forward, bf16",
        1.1,
        lambda r: _against_plain(r, "bf16", "cuda"),
    ),
)


def table(results: Results) -> str:
    """The whole page."""
    parts = [_head(results), targets(results), _speed(results), _memory(results), _labels(results)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    minutes = f"{results.seconds / 60:.0f} minutes"
    lines = ["# Results", "", f"Written by `python -m bench.run` (`make bench`) in {minutes}; do not edit.", ""]
    if results.quick:
        lines += ["**A trial (`--quick`): small rasters and narrow models. These numbers mean nothing.**", ""]
    rows = [[label, value] for label, value in results.machine.items()]
    rows += [[f"Matrix rate, {p}", f"{g:.0f} GFLOP/s, measured"] for p, g in results.gflops.items()]
    lines += [_markdown(["Machine", ""], rows), ""]
    cost = results.mflop_per_px
    lines += [
        f"* {name}: {what}; {cost[name] * 1e3:,.0f} GFLOP per Mpx." for name, what in MODELS.items() if name in cost
    ]
    lines += [f"* {note}" for note in results.notes]
    return "\n".join(lines)


def targets(results: Results) -> str:
    """What was aimed at, and what was reached."""
    rows = []
    for target in TARGETS:
        reached = target.reached(results)
        told = target.form.format(reached) if reached is not None else ""
        verdict = "" if reached is None else "yes" if target.met(reached) else "no"
        rows.append([target.text, f"{'≥' if target.at_least else '≤'} {target.bound:g}", told, verdict])
    return "## Targets\n\n" + _markdown(["What", "Target", "Measured", "Reached"], rows)


_SPEED = """\
Every run but the plain forward is a process of its own that reads a GeoTIFF and writes one. *Whole* is that
process from start to end, *inner* is without starting Python and loading libraries and weights. The unit of the
ratios is the plain forward: eager PyTorch, `network(x).argmax(1)`, nothing read or written, warm, median of
several, at the faster of its sizes, in the same precision. The *share* is the network's operations, each pixel
counted once, over whole time (the plain forward's own time) and matrix rate. CPU time is that of the whole
process, start-up included."""


def _speed(results: Results) -> str:
    head = ["System", "Precision", "Raster", "Whole, s", "Inner, s", "Whole / plain", "Inner / plain", "CPU s / Mpx"]
    head += ["Share of matrix rate", "Passes per pixel", "Peak, MiB"]
    parts = ["## Speed", _SPEED, "\n".join(f"* {name}: {note}." for name, note in NOTES.items())]
    for model, device in ((VGG, "cpu"), (VGG, "cuda"), (RESNET, "cpu"), (LAND, "cpu"), (NARROW, "cpu")):
        rows = [r for r in results.rows if (r.section, r.model, r.device) == ("speed", model, device)]
        if model in {LAND, NARROW}:  # their runs serve the other tables
            rows += [
                r for r in results.rows if (r.section, r.model) == ("labels" if model == LAND else "memory", model)
            ]
            rows = [r for r in rows if r.system == PLAIN or r.mpx == max(q.mpx for q in rows if q.system == r.system)]
        if device == "cuda" and not rows:
            rows = [Row("speed", system, VGG, p, 0, 0, device) for system in (PLAIN, OURS) for p in ("fp32", "bf16")]
        title = f"### {model}{', on the GPU' if device == 'cuda' else ''}"
        parts += [title, _markdown(head, [_speed_row(results, row) for row in rows])]
    return "\n\n".join(parts)


def _speed_row(results: Results, row: Row) -> list[str]:
    size = f"{row.height} x {row.width}" if row.height else ""
    if row.failed:
        return [row.system, row.precision, size, f"failed: {row.failed}", *[""] * 7]
    share = results.share(row)
    return [
        row.system,
        row.precision,
        size,
        _number(row.wall_s, 1),
        _number(row.inner_s, 1 if row.system != PLAIN else 3),
        _number(results.ratio(row, whole=True), 2),
        _number(results.ratio(row, whole=False), 2),
        _number(row.cpu_s / row.mpx if row.cpu_s else None, 2),
        "" if share is None else f"{100 * share:.0f} %",
        _number(row.passes, 2),
        _number(row.peak_mib, 0),
    ]


def _memory(results: Results) -> str:
    rows = []
    for system in _names(results, "memory"):
        mine = [r for r in results.rows if (r.section, r.system) == ("memory", system)]
        known = [r for r in mine if r.peak_mib is not None]
        peaks = "; ".join(f"{r.height}²: {r.peak_mib:.0f}" for r in known)
        reason = next((r.failed for r in mine if r.failed), "")
        rows.append(
            [system, "; ".join(filter(None, [peaks, reason and f"failed: {reason}"])), _number(growth(mine), 2)]
        )
    text = (
        "## Memory\n\nLargest resident memory of the process, MiB, on square rasters of the given side, and how much\n"
        "it grows for each pixel more between the two largest. The model is FCN-8s narrow (21 classes), fp32.\n\n"
    )
    return text + _markdown(["System", "Peak, MiB", "Growth, bytes per pixel"], rows)


def _labels(results: Results) -> str:
    mine = [r for r in results.rows if r.section == "labels"]
    sizes = sorted({(r.height, r.width) for r in mine})
    rows = []
    for system, precision in dict.fromkeys((r.system, r.precision) for r in mine):
        found = {(r.height, r.width): r for r in mine if (r.system, r.precision) == (system, precision)}
        share = _percent([r for r in found.values() if r.differing is not None])
        cells = [_label_cell(found.get(size)) for size in sizes]
        rows.append([system, precision, *cells, "" if share is None else f"{share:.4f} %"])
    text = (
        "## Labels\n\nPixels whose class is not that of one float32 pass over the whole image. The model is\n"
        f"{LAND}, on windows of the Blue Marble. Differing is not wrong: it means that the result\n"
        "depends on how the raster was cut, or on the precision.\n\n"
    )
    return text + _markdown(["System", "Precision", *(f"{h} x {w}" for h, w in sizes), "All"], rows)


def _label_cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"failed: {row.failed}" if row.failed else "" if row.differing is None else f"{row.differing:,}"


def _names(results: Results, section: str) -> list[str]:
    return list(dict.fromkeys(r.system for r in results.rows if r.section == section))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
