"""Measure fcn-batch and other systems on this machine: one command, one table.

``python -m bench.run`` takes about half an hour and writes RESULTS.md, RESULTS.svg and results.json beside this
file; ``--quick`` tries everything on small rasters and narrow models in a minute or two; ``--table`` makes the
tables and the plot again from results.json. Let nothing else run meanwhile.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import Measured, measure
from bench.records import MARK, PLAIN, Results, Row, load, save
from bench.systems import GEODEEP, LAND, MODELS, RESNET, SCENES, WORKER, Case, Pass, Schedule, schedule
from bench.table import table

HERE = Path(__file__).parent


@dataclass
class Bench:
    """A run in progress: what has been prepared in its scratch folder, and the rows so far."""

    folder: Path
    plan: Schedule
    rows: list[Row] = field(default_factory=list)
    _exported: dict[str, str] = field(default_factory=dict)
    _wholes: dict[Path, Path] = field(default_factory=dict)

    def run(self) -> None:
        """Measure everything in the schedule; the models must have been made."""
        for number, one in enumerate(self.plan.passes):
            self._note(f"pass {number + 1} of {len(self.plan.passes)}", self._pass(one))
        for number, case in enumerate(self.plan.cases):
            row = Row(case.section, case.system.name, case.model, case.precision, *case.size, case.device)
            try:
                row = self._case(case, row)
            except RuntimeError as error:  # of a job beside the measured one: the other rows are still good
                row = replace(row, failed=str(error).splitlines()[0])
            self._note(f"run {number + 1} of {len(self.plan.cases)}", row)

    def drift(self) -> str:
        """How the first plain forward does now, beside what it took then: the machine may have changed its pace."""
        one = self.plan.passes[0]
        then, now = self.rows[0].inner_s, self._pass(one).inner_s
        what = f"The plain forward of {one.model} ({one.precision}, {one.side} x {one.side})"
        return f"{what} took {then or 0:.3f} s at the start of the run and {now or 0:.3f} s at its end."

    def costs(self) -> dict[str, float]:
        """MFLOP per pixel of each model; without those that could not be counted."""
        told = {name: measure([*WORKER, "flops", self._model(name)]).told for name in MODELS}
        return {name: float(values["mflop_per_px"]) for name, values in told.items() if values}

    def _note(self, progress: str, row: Row) -> None:
        self.rows.append(row)
        seconds = row.failed or f"{row.wall_s or 0:.1f} s, {row.peak_mib or 0:.0f} MiB"
        where = f"{row.model}, {row.precision}, {row.height} x {row.width}, {row.device}"
        print(f"{progress}: {row.system}, {where}: {seconds}", file=sys.stderr, flush=True)

    def make_models(self) -> None:
        """Write the model files."""
        for name, width in self.plan.widths.items():
            job("model", self._model(name), "--width", width)
        job("model", self._model(RESNET))

    def _model(self, name: str) -> str:
        if name == LAND:
            return name
        return str(self.folder / f"{name.lower().replace(' ', '-')}.{'toml' if name == RESNET else 'safetensors'}")

    def _pass(self, one: Pass) -> Row:
        options = ["--precision", one.precision, "--device", one.device, "--side", one.side]
        done = measure([*WORKER, "plain", self._model(one.model), *options, "--repeats", self.plan.repeats])
        row = Row("speed", PLAIN, one.model, one.precision, one.side, one.side, one.device)
        if done.failed:
            return replace(row, failed=done.failed)
        told = done.told
        return replace(row, inner_s=told["inner_s"], cpu_s=told["cpu_s"], passes=1.0, peak_mib=done.peak_mib)

    def _case(self, case: Case, row: Row) -> Row:
        raster, model = self._raster(case), self._model(case.model)
        if case.system == GEODEEP:
            model, reason = self._onnx(case.model)
            if reason:
                return replace(row, failed=reason)
        output = self.folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        done = measure(case.system.command(raster, model, output, case.precision, case.device))
        if done.failed:
            return replace(row, failed=done.failed)
        inner, passes = self._told(case, raster, output, done)
        row = replace(row, wall_s=done.wall_s, cpu_s=done.cpu_s, peak_mib=done.peak_mib, inner_s=inner, passes=passes)
        if not case.land:
            return row
        whole = self._whole(raster, case.model)
        return replace(row, differing=int(job("differ", whole, case.system.made(raster, output))["differing"]))

    @staticmethod
    def _told(case: Case, raster: Path, output: Path, done: Measured) -> tuple[float, float]:
        """Seconds without start-up and forward passes per pixel, as each system tells them."""
        if not case.system.ours:
            return done.told["inner_s"], done.told["passes"]
        report = json.loads((output / f"{raster.stem}.run.json").read_text("utf-8"))
        timing = report["timing"]
        return timing["blocks_s"] + timing["stitch_s"], report["forward_passes_per_pixel"]

    def _raster(self, case: Case) -> Path:
        height, width = case.size
        path = self.folder / f"{'land' if case.land else 'scene'}-{height}x{width}.tif"
        if not path.exists():
            job("land" if case.land else "scene", path, height, width)
        return path

    def _whole(self, raster: Path, model: str) -> Path:
        """The map of the whole image in one pass, in float32."""
        if raster not in self._wholes:
            path = raster.with_suffix(".whole.tif")
            job("whole", raster, self._model(model), path)
            self._wholes[raster] = path
        return self._wholes[raster]

    def _onnx(self, name: str) -> tuple[str, str]:
        """The ONNX file of a model, or why there is none."""
        path = self.folder / f"{name.lower().replace(' ', '-')}.onnx"
        if name not in self._exported:
            self._exported[name] = measure([*WORKER, "export", self._model(name), path]).failed
        return str(path), self._exported[name]


def job(name: str, *options: object) -> dict[str, Any]:
    """What a worker told; RuntimeError when it failed."""
    light = name in {"scene", "land", "differ"}
    done = measure([*(SCENES if light else WORKER), name, *options])
    if done.failed:
        raise RuntimeError(f"{name}: {done.failed}\n{done.err}")
    return done.told


def run(*, quick: bool) -> Results:
    """Measure everything; intermediate files go into a temporary folder and are removed."""
    started = time.perf_counter()
    machine = {"Date": datetime.now(UTC).date().isoformat(), **job("machine")}
    plan = schedule(quick=quick, gpu=machine["GPU"] != "none")
    rates = _rates(plan)
    with tempfile.TemporaryDirectory(prefix="fcn-batch-bench-") as scratch:
        bench = Bench(Path(scratch), plan)
        bench.make_models()
        costs = bench.costs()  # first: whoever first loads a model of others' code probes it, once and slowly
        bench.run()
        notes = (bench.drift(),)
        rates = {p: max(rate, rates[p]) for p, rate in _rates(plan).items()}  # a share of it must not flatter
    rows = tuple(bench.rows)
    return Results(machine, rates, costs, rows, time.perf_counter() - started, quick, notes)


def _rates(plan: Schedule) -> dict[str, float]:
    """GFLOP/s of the machine, by precision."""
    return {p: max(job("rate", "--precision", p, "--side", plan.rate_side).values()) for p in ("fp32", "bf16")}


def write(results: Results, folder: Path) -> list[Path]:
    """Write tables and plot."""
    from bench.plot import plot

    page, picture = folder / "RESULTS.md", folder / "RESULTS.svg"
    below = page.read_text("utf-8").partition(MARK)[2] if page.exists() else ""
    page.write_text(table(results) + (f"\n{MARK}{below}" if below else ""), "utf-8")
    plot(results, picture)
    return [page, picture]


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure or read, write, print the paths."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small rasters and narrow models: a trial")
    parser.add_argument("--table", action="store_true", help="measure nothing, write tables and plot again")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="where the results are")
    options = parser.parse_args(None if arguments is None else list(arguments))
    options.output.mkdir(parents=True, exist_ok=True)
    numbers = options.output / "results.json"
    if not options.table:
        save(run(quick=options.quick), numbers)
    for path in [numbers, *write(load(numbers), options.output)]:
        print(path)


if __name__ == "__main__":
    main()
