"""Legends: what they accept, what they refuse, what they tell a GIS."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend


def _info(number: int = 0, name: str = "water", colour: str = "#1f78b4") -> ClassInfo:
    return ClassInfo(id=number, name=name, colour=colour)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_colours_are_read_as_written(rgb: tuple[int, int, int]) -> None:
    assert _info(colour="#{:02x}{:02x}{:02x}".format(*rgb)).rgb == rgb


@pytest.mark.parametrize("colour", ["1f78b4", "#1F78B4", "#1f78b", "#1f78b4 ", "blue", "#1f78b4\n"])
def test_other_spellings_of_colours_are_refused(colour: str) -> None:
    with pytest.raises(ValidationError, match="colour"):
        _info(colour=colour)


@pytest.mark.parametrize("number", [-1, 65535, 2**40])
def test_ids_fit_two_bytes(number: int) -> None:
    with pytest.raises(ValidationError, match=f"input_value={number}"):
        _info(number)


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "x" * 101}, {"color": "#000000"}])
def test_nameless_and_misspelt_classes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClassInfo(**{"id": 0, "name": "water", "colour": "#1f78b4", **fields})


@pytest.mark.parametrize(("highest", "fits"), [(0, True), (NODATA - 1, True), (NODATA, False), (999, False)])
def test_a_map_holds_ids_below_nodata(*, highest: int, fits: bool) -> None:
    assert Legend(classes=(_info(highest), _info(0 if highest else 1, "land"))).fits_a_map is fits


def test_ids_keep_the_order_of_the_channels() -> None:
    legend = Legend(classes=(_info(7, "sea"), _info(2, "land"), _info(254, "ice")))
    assert legend.ids == (7, 2, 254)
    assert len(legend) == 3


def test_a_double_id_or_name_is_named() -> None:
    with pytest.raises(ValidationError, match="two classes have the id 3"):
        Legend(classes=(_info(3, "sea"), _info(3, "land")))
    with pytest.raises(ValidationError, match="two classes have the name 'sea'"):
        Legend(classes=(_info(1, "sea"), _info(2, "sea")))
    with pytest.raises(ValidationError, match="at least 1 item"):
        Legend(classes=())


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=6, unique=True))
def test_flag_meanings_hold_one_word_for_each_class(names: list[str]) -> None:
    legend = Legend(classes=tuple(_info(number, name) for number, name in enumerate(names)))
    words = legend.flag_meanings.split(" ")
    assert len(words) == len(names)
    assert all(words)
    assert legend.flag_meanings.isascii()


def test_legends_do_not_change_and_survive_json() -> None:
    legend = Legend(classes=(_info(),))
    with pytest.raises(ValidationError, match="frozen"):
        legend.classes[0].name = "sea"
    assert Legend.model_validate_json(legend.model_dump_json()) == legend
