"""The SLURM of these tests: nobody else can reach it, and nothing of it is left."""

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.slurm.machine import Slurm, started

pytestmark = pytest.mark.slurm


def test_it_listens_on_its_own_address_only(slurm: Slurm) -> None:
    daemons = [process for process in psutil.Process().children() if process.name() in ("slurmctld", "slurmd")]
    assert len(daemons) == 2
    listening = [c for d in daemons for c in d.net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {slurm.host.address}
    ports = re.findall(r"(?:SlurmctldPort|SlurmdPort)=(\d+)", (slurm.folder / "slurm.conf").read_text())
    assert sorted(c.laddr.port for c in listening) == sorted(int(port) for port in ports)


def test_two_at_once_and_the_end_of_one(slurm: Slurm, tmp_path: Path) -> None:
    """They are strangers, and with the daemons of one its jobs end too."""
    before, here = os.environ["SLURM_CONF"], psutil.Process().children()
    with started(tmp_path, slurm.host) as other:
        job = other.run(
            "sbatch", "--parsable", "--mem=50M", f"--output={tmp_path}/out", "--wrap=exec sleep 1000"
        ).strip()
        other.wait(job, "RUNNING")
        unknown = ["scontrol", "show", "job", job]
        assert subprocess.run(unknown, env={**os.environ, "SLURM_CONF": before}, check=False).returncode
    assert os.environ["SLURM_CONF"] == before
    assert psutil.Process().children() == here
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1000"]] == []
    hello = slurm.run("sbatch", "--parsable", "--mem=50M", f"--output={tmp_path}/hello", "--wrap=echo hello").strip()
    slurm.wait(hello, "COMPLETED")
    assert (tmp_path / "hello").read_text() == "hello\n"
