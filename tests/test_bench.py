"""The benchmark's own code: what it counts and prints, on made-up numbers and on one tiny run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from bench import run as bench_run
from bench.measure import measure
from bench.networks import load_network, plain_forward, save_fcn
from bench.peers import _kept, fewest, read, run_whole
from bench.plot import bars, plot
from bench.records import OURS, PLAIN, Results, Row, load, save
from bench.scenes import differing, write_scene
from bench.summary import PAGE, README, page, summary, with_table
from bench.systems import DEFAULT, GEODEEP, MODELS, MONAI, NARROW, PEERS, VGG, schedule
from bench.table import growth, table
from tests.runs import class_map_of_cog, fcn_batch


@pytest.fixture
def results() -> Results:
    plain = Row("speed", PLAIN, VGG, "fp32", 1000, 1000, inner_s=2.0, cpu_s=4.0, passes=1.0, peak_mib=900.0)
    ours = Row("speed", OURS, VGG, "fp32", 2000, 1000, wall_s=5.0, inner_s=3.0, cpu_s=8.0, peak_mib=1000.0, passes=1.0)
    peer = replace(ours, system=MONAI.name, wall_s=10.0, inner_s=8.0, cpu_s=16.0, peak_mib=4000.0, passes=1.9)
    broken = Row("speed", GEODEEP.name, VGG, "fp32", 2000, 1000, failed="No module named 'geodeep'")
    small = replace(ours, section="memory", model=NARROW)
    large = replace(small, height=4000, peak_mib=1001.0)
    labels = replace(ours, section="labels", model="landcover-world", differing=3)
    return Results(
        {"Date": "2026-01-01", "CPU": "a | b"},
        {"fp32": 100.0, "bf16": 200.0},
        dict.fromkeys(MODELS, 0.04),
        (plain, ours, peer, broken, small, large, labels, replace(labels, precision="bf16", differing=2000)),
    )


def test_ratios_are_of_the_plain_forward_in_the_same_precision(results: Results) -> None:
    ours = results.rows[1]
    assert results.unit(VGG, "fp32") == 2.0
    assert results.ratio(ours, whole=True) == 1.25
    assert results.ratio(ours, whole=False) == 0.75
    assert results.ratio(replace(ours, precision="bf16"), whole=True) is None
    assert results.share(ours) == pytest.approx(2 * 40 / 5 / 100)


def test_growth_is_per_pixel_more(results: Results) -> None:
    memory = [row for row in results.rows if row.section == "memory"]
    assert growth(memory) == pytest.approx(2**20 / 2e6)
    assert growth(memory[:1]) is None


def test_the_numbers_survive_their_file(results: Results, tmp_path: Path) -> None:
    save(results, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == results


def test_the_page_names_targets_failures_and_empty_gpu_cells(results: Results) -> None:
    page = table(results)
    reached = [line.split("|")[3].strip() for line in page.splitlines() if "≤" in line or "≥" in line]
    assert reached == ["0.00015", "0.100", "", "1.25", "", "2.00", "", "0.10", ""]
    verdicts = [line.split("|")[4].strip() for line in page.splitlines() if "≤" in line or "≥" in line]
    assert verdicts == ["no", "yes", "", "no", "", "yes", "", "yes", ""]
    assert "failed: No module named 'geodeep'" in page
    assert "on the GPU" in page
    assert "a / b" in page
    columns = {line.count("|") for line in page.splitlines() if line.startswith("| plain forward")}
    assert columns == {12}


def test_the_table_is_made_again_without_measuring(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.plot.plot", lambda _, path: path.write_text("<svg/>"))
    save(results, tmp_path / "results.json")
    bench_run.main(["--table", "--output", str(tmp_path)])
    made = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert made == ["results.json", "RESULTS.md", "RESULTS.svg"]
    assert (tmp_path / "RESULTS.md").read_text() == table(results)


def test_readme_and_page_are_of_the_committed_results() -> None:
    committed = load(README.parent / "bench" / "results.json")
    told = "make them again with `python -m bench.summary`"
    assert PAGE.read_text("utf-8") == page(committed), told
    readme = README.read_text("utf-8")
    assert with_table(readme, summary(committed)) == readme, told


def test_the_summary_leaves_empty_what_was_not_measured(results: Results) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary(results).splitlines()[2:]]
    assert [row[0] for row in rows] == [f"**{OURS}**", *(peer.name for peer in PEERS)]
    geodeep = rows[-1]
    assert not any(geodeep[1:])
    with pytest.raises(ValueError, match="between which the table stands"):
        with_table("no marks", "table")


def test_the_plot(results: Results, tmp_path: Path) -> None:
    assert bars(results) == [(f"{OURS}, 2000²", "fp32", 0.75), (f"{MONAI.name}, 2000²", "fp32", 2.0)]
    plot(results, tmp_path / "a.svg")
    plot(results, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_measuring_from_outside() -> None:
    work = "x = bytearray(300 << 20); s = sum(range(2_000_000)); print('{\"s\": 1}')"
    done = measure([sys.executable, "-c", work])
    assert (done.code, done.failed, done.told) == (0, "", {"s": 1})
    assert done.peak_mib > 300
    assert done.cpu_s > 0
    assert done.wall_s > 0


def test_a_failure_is_told_in_one_line() -> None:
    done = measure([sys.executable, "-c", "import no_such_peer"])
    assert done.failed == "ModuleNotFoundError: No module named 'no_such_peer'"
    assert done.told == {}
    assert "stopped after" in measure([sys.executable, "-c", "import time; time.sleep(60)"], limit_s=0.5).failed


@pytest.mark.parametrize("quick", [False, True])
def test_the_schedule_measures_every_system_in_every_section(*, quick: bool) -> None:
    plan = schedule(quick=quick, gpu=False)
    assert {c.system for c in plan.cases if c.section == "speed"} >= {DEFAULT, *PEERS}
    assert {c.system for c in plan.cases if c.section == "labels"} >= {DEFAULT, *PEERS}
    assert len({c.size for c in plan.cases if (c.section, c.system) == ("memory", DEFAULT)}) >= 2
    units = {(p.model, p.precision) for p in plan.passes}
    assert {(c.model, c.precision) for c in plan.cases if c.section == "speed" and c.model == VGG} <= units
    assert len(set(plan.cases)) == len(plan.cases)


def test_command_lines(tmp_path: Path) -> None:
    ours = DEFAULT.command(Path("a.tif"), "m", tmp_path, "bf16", "cpu")
    assert ours[1:5] == ["-m", "fcn_batch", "segment", "a.tif"]
    assert ours[ours.index("--precision") + 1] == "bf16"
    assert DEFAULT.made(Path("x/a.tif"), tmp_path) == tmp_path / "a.classes.tif"
    peer = MONAI.command(Path("a.tif"), "m", tmp_path, "fp32", "cpu")
    assert peer[2:4] == ["bench.worker", "monai"]
    assert str(MONAI.made(Path("a.tif"), tmp_path)) in peer


@pytest.mark.parametrize("side", [100, 512, 1003, 2000])
def test_chips_cover_an_axis_once(side: int) -> None:
    starts = range(0, max(side - 128, 1), 384)
    spans = [_kept(start, 512, side, 64) for start in starts]
    assert [pixel for first, last in spans for pixel in range(first, last)] == list(range(side))


def test_the_fewest_windows_cover_and_overlap() -> None:
    for side in (1003, 2048, 3072):
        window = fewest(side, 448, 32)
        assert window % 32 == 0
        assert 2 * window - 448 >= side


def test_one_tiny_run_of_the_plain_forward_and_ours(tmp_path: Path) -> None:
    model = save_fcn(tmp_path / "narrow.safetensors", 1 / 32)
    raster = write_scene(tmp_path / "scene.tif", 97, 130)
    network = load_network(str(model))
    _, passes = run_whole(raster, tmp_path / "whole.tif", network)
    assert passes == 1.0
    with torch.inference_mode():
        expected = plain_forward(network, read(raster, network))[0].numpy()
    with rasterio.open(tmp_path / "whole.tif") as made:
        assert np.array_equal(made.read(1), expected)
        assert made.crs == "EPSG:32633"
    assert len(np.unique(expected)) > 1
    done = fcn_batch("segment", raster, "-m", model, "-o", tmp_path / "out", "-q")
    assert done.exit_code == 0, done.stderr
    assert differing(tmp_path / "whole.tif", tmp_path / "out" / "scene.classes.tif") == 0
    assert np.array_equal(class_map_of_cog(tmp_path / "out", "scene"), expected)
    report = json.loads((tmp_path / "out" / "scene.run.json").read_text())
    assert {"blocks_s", "stitch_s"} <= set(report["timing"])
    assert report["forward_passes_per_pixel"] > 0
