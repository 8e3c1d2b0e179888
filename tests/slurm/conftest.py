"""The SLURM that the tests of this folder submit to."""

from collections.abc import Iterator

import pytest

from tests.slurm.machine import Host, Slurm, install, missing, started


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One for all tests; skips where there is none and none can be installed."""
    if missing() and (why := install()):
        pytest.skip(f"no SLURM here: {why}")
    host = Host.found()
    if host is None:
        pytest.skip("no SLURM here: the name of this machine stands for no address, and no other can be given to it")
    with started(tmp_path_factory.mktemp("slurm"), host) as running:
        yield running
