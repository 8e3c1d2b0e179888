"""Amounts and durations: the same text means the same in every place that takes one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.units import bytes_of, seconds_of
from fcn_batch.workflows.processes.clusters import read_cluster
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.runs import fcn_batch, scene


def test_amounts() -> None:
    amounts = {"8G": 8 * 10**9, "8GB": 8 * 10**9, "8gb": 8 * 10**9, "8 GiB": 8 * 2**30, "8Gi": 8 * 2**30}
    amounts |= {"1.5GB": 1_500_000_000, "500M": 500_000_000, "4e9": 4 * 10**9, "2T": 2 * 10**12, "3KiB": 3 * 2**10}
    amounts |= {"1000000": 10**6, "7B": 7}
    assert {text: bytes_of(text) for text in amounts} == amounts
    for text in ("", "G", "4", "0GB", "999999", "-1GB", "8X", "8GBB", "1e400", "nan", "8iB", "4 G B"):
        with refuses("memory-invalid", value=repr(text)):
            bytes_of(text)


@pytest.mark.parametrize("text", ["", "90", "1:60:00", "01:00", "-1:00:00", "00:00:60", "1:00:00\n"])
def test_durations(text: str) -> None:
    assert (seconds_of("00:00:01"), seconds_of("100:59:59")) == (1, 363_599)
    with refuses("duration-invalid", value=repr(text)):
        seconds_of(text)


@pytest.mark.parametrize("text", ["8G", "1.5GB", "500M", "3GiB"])
def test_every_place_reads_the_same_amount(tmp_path: Path, text: str) -> None:
    """A job gets at least the bytes that were meant, whatever its batch system calls a M."""
    (tmp_path / "my.toml").write_text(f"kind='slurm'\nworkers=1\ncores=1\nwalltime='01:00:00'\nmemory='{text}'")
    assert read_cluster(str(tmp_path / "my.toml")).memory == bytes_of(text)
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    words = [scene(tmp_path / "a.tif", 40, 50), "-m", model, "--parts", "2", "--mem", text, "--dry-run"]
    script: Callable[[str], str] = lambda system: fcn_batch("submit", system, *words).stdout  # noqa: E731
    (asked,) = (line.partition("--mem=")[2] for line in script("slurm").splitlines() if "--mem=" in line)
    assert asked.endswith("M")
    assert bytes_of(text) <= int(asked[:-1]) * 2**20 < bytes_of(text) + 2**20
    assert f"mem={bytes_of(text)}b" in script("pbs")
    assert f"--memory={bytes_of(text) // 2}B" in script("pbs")
