"""Measure what it costs to run many blocks, on more processes, and on a raster of a gigapixel: one command.

``python -m bench.scaling`` takes about twenty minutes and 10 GB of disk and writes scaling.json beside this file, and
the section on scaling in RESULTS.md with SCALING.svg; ``--quick`` tries everything on little. Let nothing else run
meanwhile.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bench.measure import Measured, measure
from bench.records import MARK
from bench.run import HERE, job
from bench.scaling_records import Count, Large, Scaling, Share, load, save
from bench.scaling_table import plot, section

NUMBERS = "scaling.json"
_CHUNK = 64
_GRIDS = {10: (5, 2), 100: (10, 10), 1_000: (40, 25), 10_000: (100, 100)}
"""Rows and columns of blocks."""
_TRANSLATE = "import sys, rasterio.shutil as s; s.copy(sys.argv[1], sys.argv[2], driver='COG')"
"""What `gdal_translate -of COG IN OUT` does, with the GDAL that both of us have."""


_Row = TypeVar("_Row")


def run(*, quick: bool) -> Scaling:
    """Measure everything; intermediate files go into a temporary folder and are removed."""
    machine = {"Date": datetime.now(UTC).date().isoformat(), **job("machine")}
    with tempfile.TemporaryDirectory(prefix="fcn-batch-bench-") as scratch:
        folder = Path(scratch)
        empty, narrow = folder / "empty.toml", folder / "narrow.safetensors"
        job("model", empty)
        job("model", narrow, "--width", 0.0625)
        grids = {n: grid for n, grid in _GRIDS.items() if n <= (100 if quick else 10_000)}
        counts = tuple(_count(folder, empty, grid, workers) for workers in (0, 1, 2) for grid in grids.values())
        tall, model = ((4096, 256), str(narrow)) if quick else ((131_072, 2048), "landcover-world")
        shares = tuple(_share(folder, tall, model, workers) for workers in (1, 2, 4))
        return Scaling(machine, counts, shares, _large(folder, empty, 2048 if quick else 32_768))


def _count(folder: Path, model: Path, grid: tuple[int, int], workers: int) -> Count:
    raster = _scene(folder, grid[0] * _CHUNK, grid[1] * _CHUNK)
    done = measure([sys.executable, "-m", "bench.scaling_job", raster, model, _empty(folder), "--workers", workers])
    return _noted(Count(workers=workers, **_told(done)))


def _share(folder: Path, size: tuple[int, int], model: str, workers: int) -> Share:
    raster, out = _scene(folder, *size), _empty(folder)
    _told(measure([*_SEGMENT, raster, "-m", model, "-o", out, "--workers", workers, "--threads", 1, "-q"]))
    timing = json.loads((out / f"{raster.stem}.run.json").read_text("utf-8"))["timing"]
    return _noted(Share(workers, size[0] * size[1] / 1e6, timing["blocks_s"]))


def _large(folder: Path, model: Path, side: int) -> Large:
    raster, out = _scene(folder, side, side), _empty(folder)
    gdal = measure([sys.executable, "-c", _TRANSLATE, raster, out / "gdal.tif"])
    _told(gdal)
    (out / "gdal.tif").unlink()
    ours = measure([*_SEGMENT, raster, "-m", model, "-o", out, "-q"])
    _told(ours)
    timing = json.loads((out / f"{raster.stem}.run.json").read_text("utf-8"))["timing"]
    peaks = ours.peak_mib, gdal.wall_s, gdal.peak_mib
    return _noted(Large(side**2 / 1e6, ours.wall_s, timing["stitch_s"], *peaks))


_SEGMENT = (sys.executable, "-m", "fcn_batch", "segment")


def _scene(folder: Path, rows: int, cols: int) -> Path:
    path = folder / f"scene-{rows}x{cols}.tif"
    if not path.exists():
        job("scene", path, rows, cols)
    return path


def _empty(folder: Path) -> Path:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


def _told(done: Measured) -> dict[str, Any]:
    """What a job told; RuntimeError when it failed."""
    if done.failed:
        raise RuntimeError(f"{done.failed}\n{done.err}")
    return done.told


def _noted(one: _Row) -> _Row:
    print(one, file=sys.stderr, flush=True)
    return one


def write(scaling: Scaling, folder: Path) -> list[Path]:
    """Write the tables on scaling, into what `bench.run` wrote, and the plot."""
    page, picture = folder / "RESULTS.md", folder / "SCALING.svg"
    other = page.read_text("utf-8").split(MARK)[0].rstrip() if page.exists() else "# Results"
    page.write_text(f"{other}\n\n{MARK}\n\n{section(scaling)}", "utf-8")
    plot(scaling, picture)
    return [page, picture]


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure or read, write, print the paths."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few blocks and small rasters: a trial")
    parser.add_argument("--table", action="store_true", help="measure nothing, write tables and plot again")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="where the results are")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.output.mkdir(parents=True, exist_ok=True)
    numbers = options.output / NUMBERS
    if not options.table:
        save(run(quick=options.quick), numbers)
    for path in [numbers, *write(load(numbers), options.output)]:
        print(path)


if __name__ == "__main__":
    main()
