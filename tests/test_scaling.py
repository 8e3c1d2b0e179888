"""The measurements of scaling: the simulation against what can be computed by hand, and the page."""

from pathlib import Path

import pytest

from bench import run as bench_run
from bench import scaling as module
from bench.records import MARK
from bench.scaling_records import Count, Large, Scaling, Share, load, save
from bench.scaling_table import Costs, costs, section, simulate

COUNTS = tuple(
    Count(workers, blocks, 9.0, 2.0 + blocks * 0.004, 0.1, 1.0 + blocks * 0.002 * bool(workers), 800.0)
    for workers in (0, 1, 2)
    for blocks in (10, 100)
)
MACHINE = {"Date": "2026-01-01", "CPU": "a CPU, 2 cores", "Memory": "4 GiB", "Versions": "fcn-batch 1"}


@pytest.fixture
def scaling() -> Scaling:
    shares = (Share(1, 10.0, 20.0), Share(2, 10.0, 11.0), Share(4, 10.0, 10.0))
    return Scaling(MACHINE, COUNTS, shares, Large(1000.0, 130.0, 50.0, 900.0, 100.0, 500.0))


def test_costs_are_slopes(scaling: Scaling) -> None:
    found = costs(scaling)
    assert found.worker_s == pytest.approx(0.004)
    assert found.driver_s == pytest.approx(0.002)
    assert found.end_s_per_mpx == pytest.approx(0.05)


@pytest.mark.parametrize("workers", [1, 7, 20])
def test_without_a_driver_workers_are_independent(workers: int) -> None:
    seconds = simulate(20, workers, Costs(0.5, 9.0, 0), scheduler=False)
    assert seconds == pytest.approx(1.5 * -(-20 // workers))


def test_a_driver_that_is_faster_than_its_workers_costs_nothing_but_its_last_word() -> None:
    assert simulate(100, 10, Costs(0.0, 0.01, 0), scheduler=True) == pytest.approx(10 + 10 * 0.01, abs=0.2)


def test_a_driver_that_is_slower_than_its_workers_decides_the_time() -> None:
    assert simulate(1000, 1000, Costs(0.0, 0.5, 0), scheduler=True) == pytest.approx(1 + 1000 * 0.5)
    assert simulate(1000, 10, Costs(0.0, 0.5, 0), scheduler=True) == pytest.approx(1 + 1000 * 0.5, rel=0.01)


def test_the_section_tells_what_was_reached(scaling: Scaling) -> None:
    page = section(scaling)
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if "≤" in line or "≥" in line]
    assert [(row[3], row[4]) for row in rows] == [
        ("0.60", "yes"), ("0.00", "yes"), ("1.82", "yes"), ("1.30", "yes"), ("1.80", "yes"),
    ]  # fmt: skip
    assert "| 4 | 10.0 | 1.00 | 2.00 | 50 |" in page


def test_both_measurements_share_a_page(
    scaling: Scaling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(scaling, tmp_path / "scaling.json")
    assert load(tmp_path / "scaling.json") == scaling
    (tmp_path / "RESULTS.md").write_text("# Results\n\nspeed\n")
    module.main(["--table", "--output", str(tmp_path)])
    made = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert made == ["scaling.json", "RESULTS.md", "SCALING.svg"]
    page = (tmp_path / "RESULTS.md").read_text()
    assert page == f"# Results\n\nspeed\n\n{MARK}\n\n{section(scaling)}"
    module.main(["--table", "--output", str(tmp_path)])
    assert (tmp_path / "RESULTS.md").read_text() == page
    monkeypatch.setattr("bench.plot.plot", lambda _, path: path.write_text("<svg/>"))
    monkeypatch.setattr(bench_run, "table", lambda _: "# Results\n\nfaster\n")
    bench_run.write(None, tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "RESULTS.md").read_text() == page.replace("speed", "faster")
