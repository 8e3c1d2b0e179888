"""Settings for all tests."""

import pytest
from hypothesis import settings

# machines differ and are shared: no test may fail for being slow
settings.register_profile("fcn-batch", deadline=None)
settings.load_profile("fcn-batch")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of `make test-cluster`: of tests that record the property "scenario", and what they "measured"."""
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
