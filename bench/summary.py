"""The table beside the peers, from `results.json`: in the README and, with what was aimed at, on a page of the docs.

``python -m bench.summary`` writes both again; `make bench` does so at its end.
"""

import sys
from pathlib import Path

from bench.records import OURS, Results, Row, load
from bench.systems import LAND, PEERS, VGG
from bench.table import targets

ROOT = Path(__file__).resolve().parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
_PEERS = tuple(peer.name for peer in PEERS)


def summary(results: Results) -> str:
    """One row a system: the same raster, the same network, the same machine, in one run."""
    rows = [_row(results, name) for name in (OURS, *_PEERS)]
    big, small = (_raster(results, model) for model in (VGG, LAND))
    head = [
        "",
        f"{VGG}, {big}: time / bare forward pass",
        "CPU time, s / Mpx",
        "peak memory, MiB",
        f"{LAND}, {small}: s",
        "pixels unlike the whole image's",
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(results: Results) -> str:
    """`docs/benchmarks.md`."""
    machine = results.machine
    return f"""# Benchmarks

Written by `python -m bench.summary` from `bench/results.json`; do not edit. Measured on {machine["Date"]}:
{machine["CPU"]}, {machine["Memory"]}, GPU: {machine["GPU"]}.
{machine["Versions"]}.

{summary(results)}

Each run is a process of its own, from start to end, that reads a GeoTIFF and writes one, in float32; the bare forward
pass is eager PyTorch over an image that is in memory, warm, at the faster of its sizes. The last column counts pixels
whose class is not that of one pass over the whole image, on four windows of the Blue Marble. Differing is not wrong:
it means that the map depends on how the raster was cut; GeoDeep filters its maps with a median besides.

{targets(results)}

Where another is better, the table says so: for a small network and a small raster, starting Python with PyTorch is
most of the time, and a runtime of its own (ONNX) starts faster. A cell without a number was not measured.

All rows, other precisions and networks, memory by size of the raster, and scaling:
[bench/RESULTS.md](../bench/RESULTS.md). A gigapixel, workers, a large slide: [scale.md](scale.md). How good networks
of each stride and trunk are: [bench/LADDER.md](../bench/LADDER.md). What makes it fast:
[design.md](design.md#what-makes-it-fast).
"""


def with_table(readme: str, table: str) -> str:
    """The README with this table between its two marks; ValueError without them."""
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError(f"README.md has no {BEGIN} and {END}, between which the table stands")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _row(results: Results, system: str) -> list[str]:
    big, small = (_of(results, system, model) for model in (VGG, LAND))
    labels = [r for r in results.rows if (r.section, r.system, r.precision) == ("labels", system, "fp32")]
    known = [r for r in labels if r.differing is not None]
    unlike = 1e-4 * sum(r.differing or 0 for r in known) / sum(r.mpx for r in known) if known else None
    return [
        f"**{system}**" if system == OURS else system,
        _told(results.ratio(big, whole=True) if big else None, "{:.2f}"),
        _told(big.cpu_s / big.mpx if big and big.cpu_s else None, "{:.2f}"),
        _told(big.peak_mib if big else None, "{:,.0f}"),
        _told(small.wall_s if small else None, "{:.1f}"),
        _told(unlike, "{:.2f} %" if unlike else "{:.0f}"),
    ]


def _of(results: Results, system: str, model: str) -> Row | None:
    """Its run in float32 on the largest raster that the first of the peers had too."""
    of_model = [r for r in results.rows if (r.model, r.precision, r.device) == (model, "fp32", "cpu") and r.wall_s]
    shared = {(r.height, r.width) for r in of_model if r.system == _PEERS[0] and r.section != "memory"}
    found = [r for r in of_model if r.system == system and r.section != "memory" and (r.height, r.width) in shared]
    return max(found, key=lambda r: r.mpx, default=None)


def _raster(results: Results, model: str) -> str:
    row = _of(results, _PEERS[0], model)
    return "not measured" if row is None else f"{row.height} x {row.width}"


def _told(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def write(results: Results) -> list[Path]:
    """Write page and README's table; their paths."""
    PAGE.write_text(page(results), "utf-8")
    README.write_text(with_table(README.read_text("utf-8"), summary(results)), "utf-8")
    return [PAGE, README]


if __name__ == "__main__":
    for path in write(load(Path(__file__).with_name("results.json"))):
        sys.stdout.write(f"{path}\n")
