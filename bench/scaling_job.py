"""One run in many small blocks, measured from inside: the process that starts it holds the scheduler too.

What it uses is read when the blocks are done: comparing them and writing the GeoTIFF is not the scheduler's.

``python -m bench.scaling_job RASTER MODEL FOLDER --workers N`` prints a JSON object. Blocks have 64 x 64 pixels, so
that what is measured is everything but the network.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fcn_batch.commands.main import main as program
from fcn_batch.workflows.blocks import cut
from fcn_batch.workflows.run import _ended

CHUNK = 64


def run(raster: Path, model: str, folder: Path, workers: int) -> dict[str, float]:
    """Make the map; seconds and MiB of this process, and how many blocks there were."""
    used = dict[str, float]()

    def at_the_end(blocks: Any) -> bool:
        begun = time.perf_counter()
        used.setdefault("driver_cpu_s", _cpu_s() - before)
        used.setdefault("driver_peak_mib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        ended = _ended(blocks)
        used["end_s"] = time.perf_counter() - begun
        return ended

    cut.CHUNK, cut._LANE = CHUNK, CHUNK  # noqa: SLF001 - smaller than any user may ask for
    before, started = _cpu_s(), time.perf_counter()
    options = ["-m", model, "-o", str(folder), "--workers", str(workers), "--threads", "1", "-q"]
    with patch("fcn_batch.workflows.run._ended", at_the_end):
        program(["segment", str(raster), *options], standalone_mode=False)
    report = json.loads((folder / f"{raster.stem}.run.json").read_text("utf-8"))
    return {
        "blocks": report["blocks"],
        "whole_s": time.perf_counter() - started,
        "blocks_s": report["timing"]["blocks_s"],
        **used,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Read the command line, print one line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling_job", description=__doc__)
    parser.add_argument("raster", type=Path)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    told, sys.stdout = sys.stdout, sys.stderr
    values = run(options.raster, options.model, options.folder, options.workers)
    print(json.dumps(values), file=told)


if __name__ == "__main__":
    main()
