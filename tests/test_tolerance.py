"""The policy's words, and the arithmetic of storage blocks against one that counts pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.tolerance import MAX_RETRIES, OnError, StorageGrid, halves
from tests.errors import refuses


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("fail", OnError()),
        ("mask", OnError(mask=True)),
        ("retry", OnError(retries=3)),
        ("retry:1", OnError(retries=1)),
        ("retry:20,mask", OnError(retries=20, mask=True)),
        ("mask,retry", OnError(retries=3, mask=True)),
        ("retry:2,fail", OnError(retries=2)),
    ],
)
def test_policies(text: str, policy: OnError) -> None:
    assert OnError.parse(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "skip",
        "Mask",
        "mask ",
        "mask,",
        "fail,mask",
        "mask,mask",
        "retry,retry:2",
        "retry:",
        "retry:-1",
        "retry:1.5",
        "retry:٣",
        "retry:" + "9" * 5000,
        "retry:3\n",
    ],
)
def test_other_words_are_refused(text: str) -> None:
    with refuses("option-value", value=text):
        OnError.parse(text)


@pytest.mark.parametrize("text", ["retry:0", "retry:21", "mask,retry:99"])
def test_counts_out_of_range_are_refused(text: str) -> None:
    with refuses("option-value", value=text):
        OnError.parse(text)


@pytest.mark.parametrize("retries", [-1, MAX_RETRIES + 1])
def test_a_policy_checks_itself(retries: int) -> None:
    with pytest.raises(ValueError):
        OnError(retries)


@given(st.builds(OnError, st.integers(0, MAX_RETRIES), st.booleans()))
def test_its_words_give_it_back(policy: OnError) -> None:
    assert OnError.parse(str(policy)) == policy
    waits = list(policy.waits())
    assert len(waits) == policy.retries
    assert waits == sorted(waits)
    assert set(waits) <= {1, 2, 4, 8, 16, 30}


@given(st.data())
def test_blocks_of_a_window(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    grid = StorageGrid(Size(height, width), (data.draw(st.integers(1, 50)), data.draw(st.integers(1, 12))))
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    rows = sorted({r // grid.block[0] for r in range(window.row, window.stop_row)})
    cols = sorted({c // grid.block[1] for c in range(window.col, window.stop_col)})
    blocks = grid.touched(window)
    assert list(range(blocks.row, blocks.stop_row)) == rows
    assert list(range(blocks.col, blocks.stop_col)) == cols
    of_row, of_col = np.arange(height) // grid.block[0], np.arange(width) // grid.block[1]
    expected = np.ix_(np.flatnonzero(np.isin(of_row, rows)), np.flatnonzero(np.isin(of_col, cols)))
    painted, found = np.zeros((height, width)), np.zeros((height, width))
    painted[expected] = 1
    found[grid.pixels(blocks).slices()] = 1
    assert (found == painted).all()


def test_a_grid_checks_itself() -> None:
    with pytest.raises(ValueError):
        StorageGrid(Size(5, 5), (0, 5))


@given(st.builds(Window, st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)))
def test_halves_partition_a_window(window: Window) -> None:
    painted = np.zeros((20, 20), dtype=int)
    parts = halves(window)
    for part in parts:
        painted[part.slices()] += 1
        assert part.pixels <= window.pixels // 2 + min(window.height, window.width)
        assert max(part.height, part.width) <= max(window.height, window.width)
    expected = np.zeros((20, 20), dtype=int)
    expected[window.slices()] = window.pixels > 1
    assert (painted == expected).all()
