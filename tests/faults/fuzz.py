"""Damaged and hostile files given to the real program: `python -m tests.faults.fuzz --seeds 0:200`.

Every run is a process of its own, forked from one that has imported everything and used nothing. It must end by itself
within a minute of processor time and 4 GiB, with one of the exit codes that have a meaning; if it is not 0, with a line
that says why. A map made from a damaged staging folder must be the true map.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fcn_batch.commands.main import main as program
from fcn_batch.pipeline.core import errors
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.workflows import plan
from fcn_batch.workflows.blocks import cut
from tests.faults import mutate
from tests.models import save_factory_model, save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import output_bytes, scene

CODES = {
    0,
    *(one.exit_code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")),
} - {1}
CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 4 * 2**30
MOST_SECONDS = 60.0
"""Of processor time: a machine may be busy with other things."""
_LONGEST_WAIT_S = 600.0
_BLOCK = 128
_LOOK_EVERY_S = 0.01


@dataclass(slots=True)
class Result:
    """How a run ended."""

    target: str
    seed: int
    code: int
    seconds: float
    peak: int
    """Bytes of memory, with what the process was forked with."""
    stderr: str
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """What is damaged, and what is done with it."""

    name: str
    damage: Callable[[Path, random.Random], None]
    """Changes files in the folder of a run."""
    command: tuple[str, ...]
    template: str
    """Name of the folder that a run begins with a copy of."""
    must_be_true: bool = False
    """Whether a complete run's outputs must be those of an undisturbed one."""


def run_apart(action: Callable[[], Any], folder: Path, most_seconds: float, most_bytes: int) -> tuple[int, float, int]:
    """Exit code (negative: a signal), processor time and peak memory of `action`, in a process of its own."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _child(action, folder)
    killed = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        if not killed and (time.perf_counter() - started > most_seconds or _resident(child) > most_bytes):
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(_LOOK_EVERY_S)


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _child(action: Callable[[], Any], folder: Path) -> None:
    """Never returns."""
    code = 99
    try:
        os.chdir(folder)
        for stream, name in ((1, ".stdout"), (2, ".stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        torch.set_num_threads(1)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _small_blocks() -> None:
    """As `tests.runs.small_blocks`, for this process and those forked from it."""
    vars(cut).update(CHUNK=_BLOCK, _LANE=_BLOCK, _STRIP_PIXELS={"cpu": 2**13})
    vars(plan)["available_cpus"] = lambda: 1


class Bench:
    """A folder with whole files to damage, and runs on copies of them."""

    def __init__(self, root: Path) -> None:
        _small_blocks()
        for name in (
            "pipeline.store.opening",
            "workflows.finished.export",
            "workflows.segment",
            "workflows.finished.validate",
        ):
            import_module(f"fcn_batch.{name}")  # once, before all the forks
        self.root = root
        self.model = str(save_tiny_model(root / "tiny.safetensors", fc_kernel=1))
        self._rasters()
        self._models()
        self._runs()
        self.truth = made(root / "finished" / "out")
        self.targets = {target.name: target for target in self._targets()}

    def _rasters(self) -> None:
        folder = self.root / "rasters"
        folder.mkdir()
        tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
        kinds: list[dict[str, Any]] = [
            {"compress": "deflate", **tiled},
            {"compress": "lzw", "predictor": 2},
            {"compress": "jpeg", "photometric": "YCBCR", **tiled},
            {"interleave": "band", "nodata": 5},
            {"compress": "zstd", "BIGTIFF": "YES"},
            {"compress": "lerc", **tiled},
        ]
        for number, profile in enumerate(kinds):
            scene(folder / f"{number}.tif", 100, 140, **profile)
        write_raster(folder / "6.tif", noise(3, 60, 50, "uint16"))
        write_raster(folder / "7.tif", noise(4, 60, 50), photometric="RGB", alpha="YES")
        write_raster(folder / "8.png", noise(3, 60, 50), driver="PNG")
        write_raster(folder / "9.jp2", noise(3, 60, 50), driver="JP2OpenJPEG")

    def _models(self) -> None:
        for name in ("model", "factory"):
            (self.root / name).mkdir()
            scene(self.root / name / "a.tif", 100, 140)
        shutil.copy(self.model, self.root / "model" / "m.safetensors")
        save_factory_model(self.root / "factory" / "m.toml")

    def _runs(self) -> None:
        """A finished run of four blocks, and one that was interrupted after two."""
        for name in ("finished", "interrupted"):
            folder = self.root / name
            folder.mkdir()
            scene(folder / "a.tif", 200, 240)
            os.utime(folder / "a.tif", ns=(10**18, 10**18))

            def action(most: int = 2 if name == "interrupted" else 9) -> None:
                _interrupt_after(most)
                program(["segment", "a.tif", "-m", self.model, "-o", "out", "-q"])

            run_apart(action, folder, _LONGEST_WAIT_S, MOST_BYTES)
        assert (self.root / "finished" / "out" / "a.run.json").exists(), (
            self.root / "finished" / ".stderr"
        ).read_text()
        assert len(list((self.root / "interrupted" / "out" / "a.partial" / "receipts").iterdir())) == 2

    def _targets(self) -> list[Target]:
        again = ("segment", "a.tif", "-m", self.model, "-o", "out", "-q")
        staging = ("out/a.partial/plan.json", "out/a.partial/receipts/*", "out/a.partial/*.zarr/**/*")
        store, report = ("out/a.classes.zarr/**/*",), ("out/a.run.json", "out/a.stac.json", "out/*.xml")
        return [
            Target("raster", self._raster, ("segment", "x", "-m", self.model, "-o", "out", "-q"), ""),
            Target("model", self._model, ("segment", "a.tif", "-m", "m.safetensors", "-o", "out", "-q"), "model"),
            Target("factory", self._toml, ("segment", "a.tif", "-m", "m.toml", "-o", "out", "-q"), "factory"),
            Target("staging", _one_of(*staging), again, "interrupted", must_be_true=True),
            Target(
                "store",
                _one_of(*store),
                ("export", "out/a.classes.zarr", "--to", "csv", "-o", "a.csv", "-q"),
                "finished",
            ),
            Target("validate", _one_of(*store, *report), ("validate", "out", "-q"), "finished"),
            Target("again", _one_of(*report), again, "finished"),
        ]

    def _raster(self, folder: Path, draw: random.Random) -> None:
        chosen = draw.choice(sorted((self.root / "rasters").iterdir()))
        (folder / "x").write_bytes(mutate.tiff(chosen.read_bytes(), draw))

    def _model(self, folder: Path, draw: random.Random) -> None:
        file = folder / "m.safetensors"
        file.write_bytes(mutate.safetensors(file.read_bytes(), draw))

    def _toml(self, folder: Path, draw: random.Random) -> None:
        file = folder / draw.choice(("m.toml", "m.toml", "m.safetensors", "m.grid.json"))
        data = file.read_bytes() if file.exists() else b'{"sha256": "", "probe": 1, "stride": 4, "halo": 8, "phase": 0}'
        file.write_bytes((mutate.text if file.suffix == ".json" else mutate.bytes_of)(data, draw))

    def run(self, name: str, seed: int) -> Result:
        """Damage a copy of the target's files as the seed says, run the command, and judge how it ended."""
        target = self.targets[name]
        return self._end(target, seed, lambda folder: target.damage(folder, random.Random(f"{name} {seed}")))  # noqa: S311

    def replay(self, case: Path) -> Result:
        """As `run`, with the files of `case`, CORPUS/TARGET/NAME, instead of those that the target begins with."""
        return self._end(self.targets[case.parent.name], 0, lambda folder: _lay_over(case, folder))

    def _end(self, target: Target, seed: int, damage: Callable[[Path], None]) -> Result:
        folder = self.root / f"run-{target.name}-{seed}"
        if target.template:
            shutil.copytree(self.root / target.template, folder, symlinks=True)
        else:
            folder.mkdir()
        damage(folder)
        code, seconds, peak = run_apart(lambda: program(list(target.command)), folder, _LONGEST_WAIT_S, MOST_BYTES)
        result = Result(target.name, seed, code, seconds, peak, (folder / ".stderr").read_text(errors="replace"))
        judge(result)
        if code == 0 and target.must_be_true:
            found = made(folder / "out")
            wrong = [name for name, content in self.truth.items() if found.get(name) != content]
            result.complaints += [f"exit code 0, and {name} is not the true one" for name in wrong]
        shutil.rmtree(folder)
        return result


def _lay_over(case: Path, folder: Path) -> None:
    """Put the files of `case` into `folder`; FILE.head replaces the header of the safetensors file that is there."""
    for file in case.rglob("*"):
        if not file.is_file():
            continue
        place, data = folder / file.relative_to(case), file.read_bytes()
        if file.suffix == ".head":
            place = place.with_suffix("")
            whole = place.read_bytes()
            data += whole[8 + int.from_bytes(whole[:8], "little") :]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def judge(result: Result) -> None:
    """What is wrong with how a run ended goes into its complaints."""
    told = result.stderr.strip()
    if result.code not in CODES:
        result.complaints.append(f"exit code {result.code}: {told[-300:]}")
    if "Traceback" in told or (result.code != 0 and len(told.splitlines()) != 1):
        result.complaints.append(f"not one line: {told[:300]!r}")
    if result.seconds > MOST_SECONDS or result.peak > MOST_BYTES:
        result.complaints.append(f"{result.seconds:.0f} s, {result.peak / 2**20:.0f} MiB")
    if any(ord(character) < 32 and character not in "\n\t" for character in told):
        result.complaints.append(f"a terminal would obey {told[:300]!r}")


def made(folder: Path) -> dict[str, object]:
    """What a run made, but for times and paths."""
    report = json.loads((folder / "a.run.json").read_bytes())
    told = {f"{key} in the report": report[key] for key in ("classes", "nodata_pixels")}
    files = {n: json.loads(c) if n.endswith(".json") else c for n, c in output_bytes(folder, "a").items()}
    return {**files, **told}


def _one_of(*patterns: str) -> Callable[[Path, random.Random], None]:
    """Damages one file among those that match: the metadata more often than the rest."""

    def damage(folder: Path, draw: random.Random) -> None:
        files = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        texts = [path for path in files if path.suffix == ".json"]
        file = draw.choice(texts if texts and draw.random() < 0.75 else files)
        file.write_bytes((mutate.text if file in texts else mutate.bytes_of)(file.read_bytes(), draw))

    return damage


def _interrupt_after(receipts: int) -> None:
    """Let this process's run be interrupted when it has made so many receipts."""
    commit, made = Journal.commit, iter(range(receipts))

    def counted(journal: Journal, receipt: Receipt) -> None:
        if next(made, None) is None:
            raise KeyboardInterrupt
        commit(journal, receipt)

    Journal.commit = counted  # type: ignore[method-assign, assignment]


def table(results: Sequence[Result]) -> str:
    """A row for each target."""
    lines = [f"{'target':<10} {'runs':>5} {'worst MiB':>10} {'worst s':>8}  exit codes"]
    for name in dict.fromkeys(result.target for result in results):
        mine = [result for result in results if result.target == name]
        codes = ", ".join(f"{code}: {number}" for code, number in sorted(Counter(one.code for one in mine).items()))
        worst = max(one.peak for one in mine) / 2**20
        lines.append(f"{name:<10} {len(mine):>5} {worst:>10.0f} {max(one.seconds for one in mine):>8.1f}  {codes}")
    return "\n".join(lines)


def _asked(bench: Bench, chosen: argparse.Namespace) -> Iterator[Result]:
    first, behind = map(int, chosen.seeds.split(":"))
    names = chosen.targets or list(bench.targets)
    for case in sorted(CORPUS.glob("*/*")) if chosen.corpus else ():
        yield _told(bench.replay(case), f"{case.parent.name}/{case.name}")
    for name in names if not chosen.corpus else ():
        for seed in range(first, behind):
            yield _told(bench.run(name, seed), f"{name} {seed}")


def _told(result: Result, name: str) -> Result:
    for complaint in result.complaints:
        sys.stderr.write(f"{name}: {complaint}\n")
    return result


def main() -> int:
    """Run the seeds that the command line asks for; 1 when there is anything to complain about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:200", help="FIRST:BEHIND_LAST")
    parser.add_argument("--targets", nargs="*", help="all when none is named")
    parser.add_argument("--corpus", action="store_true", help="the files that once did harm, instead of seeds")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        results = list(_asked(Bench(Path(root)), chosen))
    if chosen.json:
        keys = ("target", "seed", "code", "complaints")
        sys.stdout.write(json.dumps([{key: getattr(result, key) for key in keys} for result in results]) + "\n")
    else:
        sys.stdout.write(table(results) + "\n")
    return int(any(result.complaints for result in results))


if __name__ == "__main__":
    sys.exit(main())
