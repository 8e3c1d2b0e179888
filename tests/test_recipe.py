"""Recipes: read whole, wrong in every field at once, stages, labels."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.model_card import Architecture, TorchvisionFcn
from fcn_batch.pipeline.core.recipe import Recipe, read_recipe
from fcn_batch.pipeline.core.splits import USES, StripSplit
from tests.errors import refuses
from tests.recipes import recipe_values, tiny_recipe, write_toml

SHIPPED = sorted((Path(__file__).parents[1] / "configs" / "models").glob("*.toml"))
WORLD = next(path for path in SHIPPED if path.stem == "landcover-world")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.stem))
def test_shipped_recipes_are_named_like_their_files(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.model.name == path.stem
    assert recipe.images.bands == ("red", "green", "blue")
    assert isinstance(recipe.architecture, Architecture)
    assert recipe.data, "where the data come from"
    assert all(part.licence for part in recipe.data)
    if recipe.start is not None:
        package = recipe.start.removeprefix("package:").partition("/")[0].replace("_", "-")
        assert any(package in part.source for part in recipe.data), "weights to start from are data, too"


def test_the_strips_of_the_world() -> None:
    recipe = read_recipe(WORLD)
    assert isinstance(recipe.split, StripSplit)
    assert [c.id for c in recipe.classes] == list(range(6))
    assert recipe.classes[1].label_ids == (1, 2, 3, 4, 5)
    regions = recipe.split.regions("", Size(2700, 5400), Path())  # the world at 1/15 degree
    train, val, test = (regions[use] for use in USES)
    assert [(w.col, w.width) for w in val] == [(1800, 450)]
    assert [w.col for w in test] == [900, 2700, 4500]
    assert {w.stop_row for w in test} == {2250}
    assert sum(w.width for w in train) == (12 - 1 - 3 - 1) * 450
    assert {w.height for w in train} == {2700}


def test_what_a_file_says_is_what_is_read(tmp_path: Path) -> None:
    values = recipe_values(images={"ignore": [9]}, schedule={"staged": True}, start="trunk.pth")
    recipe = read_recipe(write_toml(tmp_path / "recipe.toml", values))
    assert recipe == tiny_recipe(images={"ignore": [9]}, schedule={"staged": True}, start="trunk.pth")
    assert recipe.sha256 != tiny_recipe(images={"ignore": [9]}, start="trunk.pth").sha256


def _written(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The recipe that ships with lines changed; each change is a pattern and what stands there instead."""
    text = WORLD.read_text("utf-8")
    for pattern, new in changes:
        text, found = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
        assert found, pattern
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def _problems(path: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    assert (caught.value.code, caught.value.fields["path"]) == ("recipe-invalid", path)
    return str(caught.value.fields["problems"])


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    problems = _problems(
        _written(
            tmp_path,
            (r"^name = .*", 'name = "Land cover"'),
            (r"^width = 0.*", "width = -1"),
            (r"^steps = .*", 'steps = "many"\nspeed = 11'),
            (r"^colour = .*", 'colour = "blue"'),
            (r"^val = .*", "val = [2]"),
            (r"^gsd_m = .*", "gsd_m = nan"),
            (r"^paths = .*", ""),
        )
    )
    fields = "model.name architecture.fcn.width schedule.steps schedule.speed classes.0.colour split.strips model.gsd_m"
    assert {problem.split(": ")[0] for problem in problems.split("; ")} == {*fields.split(), "images.paths"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("id = 1\n", "id = 0\n"),
        ('"barren"', '"water"'),
        (r"\[16\]", "[16, 4]"),
        (r"labels = \[16\]\n", ""),  # its own id then, which another class has
        ("id = 1\n", "id = 255\n"),
    ],
)
def test_classes_that_are_not_distinct_or_fit_no_map(tmp_path: Path, old: str, new: str) -> None:
    problems = _problems(_written(tmp_path, (old, new)))
    assert problems.startswith("classes: ")
    assert "\n" not in problems


def test_a_class_without_labels_means_its_own_id() -> None:
    classes = [{"id": 7, "name": "a", "colour": "#000000"}, {"id": 9, "name": "b", "colour": "#0000ff", "labels": [3]}]
    recipe = tiny_recipe(classes=classes)
    assert [c.label_ids for c in recipe.classes] == [(7,), (3,)]
    assert recipe.legend.ids == (7, 9)


@pytest.mark.parametrize(
    ("given", "strides"), [(8, (32, 16, 8)), (16, (32, 16)), (32, (32,))], ids=["to 8", "to 16", "to 32"]
)
def test_stages_go_from_coarse_to_fine(given: int, strides: tuple[int, ...]) -> None:
    recipe = tiny_recipe(architecture={"stride": given}, schedule={"staged": True})
    stages = [stage for stage in recipe.stages if isinstance(stage, Architecture)]
    assert tuple(stage.stride for stage in stages) == strides
    assert stages[-1] == recipe.architecture
    assert {stage.model_copy(update={"stride": given}) for stage in stages} == {recipe.architecture}
    assert tiny_recipe(architecture={"stride": given}).stages == (recipe.architecture,)


def test_torchvision_networks_have_no_stages() -> None:
    """And an architecture is of the paper's family unless it says so."""
    architecture, values = TorchvisionFcn(name="fcn_resnet50"), recipe_values()
    del values["architecture"]["family"]
    assert Recipe.model_validate(values) == tiny_recipe()
    values["architecture"] = architecture.model_dump()
    assert Recipe.model_validate(values).stages == (architecture,)
    values["schedule"]["staged"] = True
    with pytest.raises(ValidationError):
        Recipe.model_validate(values)


@pytest.mark.parametrize(
    "parts",
    [
        {"schedule": {"batch": 6, "accumulate": 4}},
        {"schedule": {"learning_rate": 0}},
        {"augment": {"scale": 0.5}},
        {"augment": {"turn": True}},
        {"images": {"bands": []}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny_recipe(**parts)


def test_files_that_are_no_recipe_or_hold_any_name(tmp_path: Path) -> None:
    assert read_recipe(_written(tmp_path, ('"barren"', '"Wüste"'))).classes[4].name == "Wüste"
    path = _written(tmp_path, (r"\[model\]", "[model"))
    other = tmp_path / "other.toml"
    other.write_bytes(b"\xff\xfe[model]")
    for unreadable in (path, other, tmp_path / "none.toml", tmp_path):
        with refuses("recipe-unreadable", path=unreadable):
            read_recipe(unreadable)
