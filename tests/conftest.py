"""Settings for all tests."""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import settings

# machines differ and are shared: no test may fail for being slow
settings.register_profile("fcn-batch", deadline=None)
settings.load_profile("fcn-batch")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of `make test-cluster`, and note the time of each file where TEST_TIMES says."""
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if report.when == "call" and "scenario" in told:
                rows.append(
                    f"| {told['scenario']} | {told.get('measured', '')} | {outcome} | {report.duration:.0f} s |"
                )
    if rows:
        terminalreporter.section("scenarios")
        for row in ("| scenario | measured | outcome | time |", "| --- | --- | --- | --- |", *rows):
            terminalreporter.write_line(row)
    if "TEST_TIMES" in os.environ:
        _note_times(terminalreporter, Path(os.environ["TEST_TIMES"]))


def _note_times(terminalreporter: pytest.TerminalReporter, file: Path) -> None:
    """Append seconds and name of every test file, a line each."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0]] += report.duration
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(f"{time:7.1f} s  {name}\n" for name, time in seconds.items())
