"""Every command that tells facts tells them to programs too: with --json, one document and nothing else."""

import json
from pathlib import Path

import click
import numpy as np
import pytest

from fcn_batch.commands.main import main
from fcn_batch.workflows.learning.models import embedded
from tests.models import save_tiny_model
from tests.rasters import write_raster
from tests.runs import DEGREES, fcn_batch, scene, segmented

TELLING = ("doctor", "evaluate", "model check", "model info", "model list", "plan", "status", "validate", "verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raster, its map, and labels."""
    place = tmp_path_factory.mktemp("maps")
    model = save_tiny_model(place / "tiny.safetensors", fc_kernel=1)
    segmented(scene(place / "a.tif", 40, 50), "-m", model, "-q")
    write_raster(place / "labels.tif", np.full((1, 40, 50), 10, np.uint8), crs="EPSG:4326", transform=DEGREES)
    return place


def words_of(command: str, folder: Path) -> list[object]:
    arguments: dict[str, list[object]] = {
        "doctor": ["--folder", folder],
        "evaluate": [folder / "a.classes.tif", folder / "labels.tif", "-q"],
        "model check": [folder / "tiny.safetensors"],
        "model info": [folder / "tiny.safetensors"],
        "plan": [folder / "a.tif", "-m", folder / "tiny.safetensors"],
        "status": [folder / "a.tif"],
        "validate": [folder, "-q"],
        "verify": [folder, "-q"],
    }
    return [*command.split(), *arguments.get(command, [])]


def test_these_commands_have_it() -> None:
    found = []

    def look(group: click.Group, path: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                look(command, (*path, name))
            elif any("--json" in param.opts for param in command.params):
                found.append(" ".join((*path, name)))

    look(main, ())
    assert tuple(sorted(found)) == TELLING


@pytest.mark.parametrize("command", TELLING)
def test_one_document_and_nothing_else(command: str, folder: Path) -> None:
    result = fcn_batch(*words_of(command, folder), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert isinstance(json.loads(result.stdout), dict | list)
    assert "JSON" in fcn_batch(*command.split(), "--help").stdout


@pytest.mark.parametrize("command", TELLING)
def test_errors_stay_on_standard_error(command: str, folder: Path) -> None:
    if command == "model list":
        return  # cannot fail
    words: list[object] = [folder / "none" if isinstance(w, Path) else w for w in words_of(command, folder)]
    plain, told = fcn_batch(*words), fcn_batch(*words, "--json")
    assert told.exit_code == plain.exit_code != 0
    assert told.stderr == plain.stderr != ""
    assert told.stdout == "" or command == "doctor"


def test_the_list_of_models() -> None:
    told = json.loads(fcn_batch("model", "list", "--json").stdout)
    assert [tuple(one.values()) for one in told] == [
        (f.card.name, f.card.version, f.card.summary, str(f.path), f.sha256) for f in embedded()
    ]
    lines = [line.split(maxsplit=1) for line in fcn_batch("model", "list").stdout.splitlines()]
    assert lines == [[one["name"], one["summary"]] for one in told]


def test_a_plan_with_what_it_costs(folder: Path) -> None:
    told = json.loads(fcn_batch(*words_of("plan", folder), "--json").stdout)
    lines = dict(line.split(maxsplit=1) for line in fcn_batch(*words_of("plan", folder)).stdout.splitlines())
    facts = told["facts"]
    assert lines["fingerprint"] == facts["fingerprint"]
    assert lines["cost"] == f"{facts['passes_per_pixel']:.2f} forward passes per pixel"
    assert lines["memory"] == f"about {facts['memory'] / 2**30:.1f} GiB per process, beside the libraries"
    assert lines["blocks"].startswith(f"{facts['blocks']} of")
    assert lines["device"].startswith(f"{facts['device']} (")
    assert lines["result"] == facts["exactness"]
    assert lines["disk"].startswith(f"at most {facts['disk_needed'] / 1e6:,.1f} MB")
    assert "note" not in lines
    assert facts["notes"] == []
    noted = json.loads(fcn_batch(*words_of("plan", folder), "--overlap", 32, "--tile", 100, "--json").stdout)
    assert any("--tile 100" in note for note in noted["facts"]["notes"])


def test_what_is_told_of_runs(folder: Path) -> None:
    (one,) = json.loads(fcn_batch(*words_of("status", folder), "--json").stdout)
    assert (one["phase"], one["done"]) == ("complete", 1)
    valid = json.loads(fcn_batch(*words_of("validate", folder), "--json").stdout)
    names = [line[:12].strip() for line in fcn_batch(*words_of("validate", folder)).stdout.splitlines()]
    assert names == ["run", *(check["name"] for check in valid["checks"])]
    same = json.loads(fcn_batch(*words_of("verify", folder), "--json").stdout)
    assert f"{same['compared']:,} px" in fcn_batch(*words_of("verify", folder)).stdout
    score = json.loads(fcn_batch(*words_of("evaluate", folder), "--json").stdout)
    assert f"{score['pixel_accuracy']:.3f} of pixels" in fcn_batch(*words_of("evaluate", folder)).stdout


def test_what_is_told_of_a_model(folder: Path) -> None:
    text = fcn_batch(*words_of("model info", folder)).stdout
    told = json.loads(fcn_batch(*words_of("model info", folder), "--json").stdout)
    for fact in (told["file"], told["sha256"], told["summary"], f"{told['stride']} px", f"halo {told['halo']} px"):
        assert fact in text
    check = json.loads(fcn_batch(*words_of("model check", folder), "--json").stdout)
    assert f"{check['found']['halo']} px, as the card says" in fcn_batch(*words_of("model check", folder)).stdout
