"""What the doctor says is so, and what is wrong comes with a remedy."""

import json
import os
import platform
import shutil
import tomllib
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import rasterio
import torch

import fcn_batch as package
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.network.device import choose_device
from fcn_batch.pipeline.raster.gdal import driver_names
from fcn_batch.workflows import doctor
from fcn_batch.workflows.doctor import EXTRAS, Findings, Folder, examine
from fcn_batch.workflows.learning.models import embedded
from tests.errors import error_of
from tests.runs import fcn_batch


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to measure a disk: 8 MiB instead of 64."""
    monkeypatch.setattr("fcn_batch.workflows.doctor._SAMPLE", 2**23)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return examine(tmp_path_factory.mktemp("maps"), {})


def missing_driver(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = driver_names() - {name}
    monkeypatch.setattr("fcn_batch.workflows.doctor.driver_names", lambda: there)


def test_the_facts_are_true(found: Findings) -> None:
    assert (found.fcn_batch, found.python) == (package.__version__, platform.python_version())
    assert (found.torch, found.torch_threads) == (torch.__version__, torch.get_num_threads())
    assert found.cpus == len(os.sched_getaffinity(0))
    assert 1 <= found.cores <= found.cpus
    assert 0 < found.free_memory < psutil.virtual_memory().total
    assert len(found.cuda) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    flags = Path("/proc/cpuinfo").read_text()
    if platform.machine() == "x86_64":
        assert found.fast_bf16 == any(flag in flags.split() for flag in ("amx_bf16", "avx512_bf16"))
    assert (found.gdal, found.libraries["rasterio"]) == (rasterio.__gdal_version__, rasterio.__version__)
    assert found.libraries == {name: version(name) for name in found.libraries}
    with rasterio.Env() as env:
        assert found.drivers == {name: name in env.drivers() for name in found.drivers}
    assert found.drivers["GTiff"]


def test_the_choices_are_those_of_a_run(found: Findings) -> None:
    assert found.chosen.device == choose_device("auto")
    assert set(found.chosen.precision) == {one.card.name for one in embedded()}
    if found.chosen.device == "cpu":
        assert found.chosen.threads == found.cores
        assert found.chosen.memory == pytest.approx(max(found.free_memory / 2, 2**30), rel=0.5)
        assert found.fast_bf16 or set(found.chosen.precision.values()) == {"fp32"}


def test_the_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    measured = doctor.measure(tmp_path)
    assert measured.path == str(tmp_path)
    assert measured.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    assert measured.write_speed is not None
    assert measured.write_speed > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {
        name: tuple(sorted(part.split(">")[0].split("=")[0] for part in parts))
        for name, parts in project["optional-dependencies"].items()
        if name not in ("bench", "demo", "dev", "docs", "models")  # for work on the project itself
    }
    assert wanted == EXTRAS


def test_json_has_the_same_facts(tmp_path: Path) -> None:
    result = fcn_batch("doctor", "--json", "--folder", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert told.pop("ok") is True
    here = json.loads(json.dumps(asdict(examine(tmp_path, os.environ))))
    vary = ("free_memory", "chosen", "folder", "environment", "problems")
    assert set(told) == set(here)
    assert {key: value for key, value in told.items() if key not in vary} == {
        key: value for key, value in here.items() if key not in vary
    }
    assert told["folder"]["path"] == str(tmp_path)
    assert told["chosen"]["precision"] == here["chosen"]["precision"]


def test_people_are_told_every_fact(found: Findings) -> None:
    told = "\n".join(f"{label} {value}" for label, value in found.describe())
    names = (*found.drivers, *found.extras, *found.libraries, *found.chosen.precision)
    facts = (found.fcn_batch, found.python, found.platform, found.torch, found.gdal, found.folder.path)
    assert [one for one in (*names, *facts, *filter(None, found.libraries.values())) if one not in told] == []


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_place_that_is_no_folder_is_a_problem(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "maps"
    if kind == "file":
        place.touch()
    result = fcn_batch("doctor", "--folder", place)
    assert result.exit_code == OutputError.exit_code
    error = error_of(result)
    assert (error.code, str(place) in error.fields["what"]) == ("installation-unfit", True)
    assert result.stdout.splitlines()[-1] == f"problem      {error}"
    told = json.loads(fcn_batch("doctor", "--folder", place, "--json").stdout)
    assert told["ok"] is False
    assert told["problems"][0]["code"] == OutputError.exit_code


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fcn_batch.workflows.doctor.os.fsync", full)
    folder = doctor.measure(tmp_path)
    assert (folder.write_speed, folder.trouble) == (None, "cannot be written: No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "code"), [("COG", 6), ("GTiff", 6), ("JP2OpenJPEG", 0), ("VRT", 0)])
def test_a_missing_driver_is_named(tmp_path: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    missing_driver(name, monkeypatch)
    result = fcn_batch("doctor", "--folder", tmp_path)
    assert result.exit_code == code
    assert f"{name} MISSING" in result.stdout
    label, last = result.stdout.splitlines()[-1].split(maxsplit=1)
    assert (label, f" {name}, " in last) == ("problem" if code else "note", True)


def test_a_driver_that_the_user_leaves_out_has_another_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing_driver("PNG", monkeypatch)
    (problem,) = examine(tmp_path, {"GDAL_SKIP": "PNG HTTP"}).problems
    assert "GDAL_SKIP" in problem.remedy


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = doctor._version
    monkeypatch.setattr("fcn_batch.workflows.doctor._version", lambda name: None if name == "obstore" else have(name))
    result = fcn_batch("doctor", "--folder", tmp_path)
    assert result.exit_code == 0
    assert "remote: missing (obstore): pip install 'fcn-batch[remote]'" in result.stdout


def test_the_environment_is_told_without_secrets(tmp_path: Path) -> None:
    given = {
        "GDAL_NUM_THREADS": "4",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "GDAL_HTTP_USERPWD": "me:secret",
        "GDAL_HTTP_HEADERS": "Authorization: secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "GDAL_SKIP": "HTTP WMS",
        "HOME": "/home/me",
    }
    told = examine(tmp_path, given).environment
    assert told == {
        "CUDA_VISIBLE_DEVICES": "0",
        "GDAL_HTTP_HEADERS": "(set)",
        "GDAL_HTTP_USERPWD": "(set)",
        "GDAL_NUM_THREADS": "4",
        "OMP_NUM_THREADS": "1",
    }


def test_little_of_anything_is_noted(found: Findings) -> None:
    poor = replace(found, free_memory=10**8, folder=Folder("/maps", 10**8, 1e6), libraries={"dask": None})
    assert [problem.code for problem in doctor._amiss(poor)] == [0, 0, 0, 0]
    told = " ".join(problem.what for problem in doctor._amiss(poor))
    for part in ("dask", "100.0 MB of memory", "/maps: only 100.0 MB", "1.0 MB/s"):
        assert part in told
