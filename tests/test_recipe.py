"""Recipes: read whole, wrong in every field at once, strips that never overlap."""

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.errors import TrainingError
from fcn_batch.pipeline.geometry import Size
from fcn_batch.pipeline.recipe import StripSplit, read_recipe

WORLD = Path(__file__).parents[1] / "configs" / "models" / "landcover-world.toml"
USES: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


def test_the_recipe_of_the_model_that_ships() -> None:
    recipe = read_recipe(WORLD)
    assert recipe.model.name == WORLD.stem
    assert recipe.pair.bands == ("red", "green", "blue")
    assert [c.id for c in recipe.classes] == list(range(6))
    size = Size(2700, 5400)  # the world at 1/15 degree
    train, val, test = (recipe.split.regions(size, use) for use in USES)
    assert [(w.col, w.width) for w in val] == [(1800, 450)]
    assert [w.col for w in test] == [900, 2700, 4500]
    assert {w.stop_row for w in test} == {2250}
    assert sum(w.width for w in train) == (12 - 1 - 3 - 1) * 450
    assert {w.height for w in train} == {2700}


@st.composite
def _splits(draw: st.DrawFn) -> StripSplit:
    strips = draw(st.permutations(range(8)))
    cuts = sorted(draw(st.tuples(st.integers(1, 4), st.integers(5, 8))))
    return StripSplit(
        width=draw(st.integers(1, 9)),
        val=tuple(strips[: cuts[0]]),
        test=tuple(strips[cuts[0] : cuts[1]]),
        never=tuple(strips[cuts[1] :][:1]),
        score_rows=draw(st.none() | st.tuples(st.integers(0, 5), st.integers(6, 12))),
    )


@given(_splits(), st.integers(1, 10), st.integers(1, 80))
def test_strips_are_disjoint_and_cover_the_raster(split: StripSplit, height: int, width: int) -> None:
    size = Size(height, width)
    use_of = np.full((height, width), -1)
    for number, use in enumerate(USES):
        regions = split.regions(size, use)
        assert regions == sorted(regions, key=lambda w: w.col)
        for window in regions:
            assert window == window.clipped(size)
            assert (use_of[window.slices()] == -1).all(), "a pixel has two uses"
            use_of[window.slices()] = number
        joined = {w.stop_col for w in regions} & {w.col for w in regions}
        assert not joined, "neighbouring strips are one window"
    lists = (None, split.val, split.test)
    for col in range(width):
        strip = col // split.width
        for row in range(height):
            start, stop = split.score_rows or (0, height)
            if strip in split.never:
                expected = -1
            elif strip in split.val or strip in split.test:
                expected = next(n for n, named in enumerate(lists) if named and strip in named)
                expected = expected if start <= row < stop else -1
            else:
                expected = 0
            assert use_of[row, col] == expected


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"test": (1, 2)}, "strip 1 is in both val and test"),
        ({"never": (3,)}, "strip 3 is in both test and never"),
        ({"never": (0, 1)}, "strip 1 is in both val and never"),
        ({"score_rows": (7, 7)}, r"later one, got \[7, 7\]"),
        ({"score_rows": (-1, 7)}, r"got \[-1, 7\]"),
        ({"val": ()}, "val"),
    ],
)
def test_splits_that_would_leak_or_score_nothing(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        StripSplit(**{"width": 10, "val": (1,), "test": (3,), **change})


def _written(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The recipe that ships with lines changed; each change is a pattern and what stands there instead."""
    text = WORLD.read_text("utf-8")
    for pattern, new in changes:
        text, found = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
        assert found, pattern
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def _refused(path: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    assert caught.value.exit_code == 8
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = _refused(
        _written(
            tmp_path,
            (r"^name = .*", 'name = "Land cover"'),
            (r"^width = 0.*", "width = -1"),
            (r"^steps = .*", 'steps = "many"\nspeed = 11'),
            (r"^colour = .*", 'colour = "blue"'),
            (r"^val = .*", "val = [2]"),
            (r"^gsd_m = .*", "gsd_m = nan"),
            (r"^image = .*", ""),
        )
    )
    for field in (
        "model.name: ",
        "architecture.width: ",
        "schedule.steps: ",
        "schedule.speed: ",
        "classes.0.colour: ",
        "split: Value error, strip 2 is in both val and test",
        "model.gsd_m: ",
        "pair.image: ",
    ):
        assert field in message


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("id = 1\n", "id = 0\n", "two classes have the id 0"),
        ('"barren"', '"water"', "two classes have the name 'water'"),
    ],
)
def test_classes_that_are_not_distinct(tmp_path: Path, old: str, new: str, match: str) -> None:
    assert f"classes: Value error, {match}" in _refused(_written(tmp_path, (old, new)))


def test_no_toml(tmp_path: Path) -> None:
    path = _written(tmp_path, (r"\[model\]", "[model"))
    assert "not a TOML file: " in _refused(path)
    path.write_bytes(b"\xff\xfe[model]")
    assert "not a TOML file: " in _refused(path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "cannot read the recipe: No such file" in _refused(tmp_path / "none.toml")
    assert "cannot read the recipe: Is a directory" in _refused(tmp_path)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    recipe = read_recipe(_written(tmp_path, ('"barren"', '"Wüste"')))
    assert recipe.classes[4].name == "Wüste"
    assert tomllib.loads(WORLD.read_text("utf-8"))["classes"][4]["name"] == "barren"
