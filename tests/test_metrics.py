"""The metrics against loops that follow the paper's formulas word by word."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fcn_batch.pipeline.core.metrics import Confusion

N = 4
Labels = NDArray[np.uint8]
# few pixels of four classes, nodata and a label that is no class: absent classes come up all the time
LABELS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=4),
    elements=st.sampled_from([0, 1, 2, 3, 7, 255]),
)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Labels, Labels]:
    truth = draw(LABELS)
    predicted = draw(hnp.arrays(np.uint8, truth.shape, elements=st.sampled_from([0, 1, 2, 3, 9, 255])))
    return truth, predicted


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _oracle(truth: Labels, predicted: Labels) -> dict[str, float]:
    pixels = [(int(t), int(p)) for t, p in zip(truth.flat, predicted.flat, strict=True) if t < N]
    total = len(pixels)
    accuracy, iu, weighted = [], [], 0.0
    for c in range(N):
        hits = sum(t == p == c for t, p in pixels)
        in_truth = sum(t == c for t, _ in pixels)
        union = sum(c in (t, p) for t, p in pixels)
        if in_truth:
            accuracy.append(hits / in_truth)
            weighted += in_truth * hits / union
        if union:
            iu.append(hits / union)
    return {
        "pixel_accuracy": sum(t == p for t, p in pixels) / total if total else math.nan,
        "mean_accuracy": _mean(accuracy),
        "mean_iu": _mean(iu),
        "frequency_weighted_iu": weighted / total if total else math.nan,
    }


@settings(max_examples=50)
@given(_pairs(), st.integers(0, 4))
def test_all_numbers_are_the_papers(pair: tuple[Labels, Labels], cut: int) -> None:
    """The matrix has truth in rows, and parts add up to the whole."""
    truth, predicted = pair
    score = Confusion.count(truth[:cut], predicted[:cut], N) + Confusion.count(truth[cut:], predicted[cut:], N)
    assert score.summary == pytest.approx(_oracle(truth, predicted), abs=1e-12, nan_ok=True)
    assert score.counts.sum() == (truth < N).sum()
    for k in range(N):
        assert score.matrix[k].tolist() == [((truth == k) & (predicted == one)).sum() for one in range(N)]
        hits = int(((truth == k) & (predicted == k)).sum())
        labelled, given_it = int((truth == k).sum()), int(((truth < N) & (predicted == k)).sum())
        assert (score.truth[k], score.predicted[k]) == (labelled, given_it)
        assert score.recall[k] == pytest.approx(hits / labelled if labelled else math.nan, nan_ok=True)
        assert score.precision[k] == pytest.approx(hits / given_it if given_it else math.nan, nan_ok=True)


def test_some_classes_alone() -> None:
    score = Confusion.count(np.array([5, 2, 2, 2]), np.array([5, 5, 2, 255]), classes=9)
    assert score.restricted((5, 2)).counts.tolist() == [[1, 0, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="3"):
        score.restricted((5,))


def test_without_pixels_nothing_is_known() -> None:
    score = Confusion.empty(3)
    assert all(math.isnan(number) for number in score.summary.values())
    assert all(np.isnan(each).all() for each in (score.iu, score.precision, score.recall))


def test_absent_classes_and_nodata() -> None:
    """In neither map: no IU. Predicted but not there: zero. Predicted nodata: an error of the true class alone."""
    neither = Confusion.count(np.array([0, 1]), np.array([0, 1]), classes=3)
    assert math.isnan(neither.iu[2])
    assert neither.mean_iu == 1.0
    assert Confusion.count(np.array([0, 0]), np.array([0, 2]), classes=3).mean_iu == pytest.approx((0.5 + 0) / 2)
    nothing = Confusion.count(np.array([0, 0, 1]), np.array([0, 255, 1]), classes=2)
    assert nothing.pixel_accuracy == pytest.approx(2 / 3)
    assert nothing.iu.tolist() == [0.5, 1.0]


def test_numbers_of_any_size_and_sign() -> None:
    """Counts beyond 32 bits, signed labels, and a class number that overflows bytes."""
    half = Confusion(np.array([[2**40, 1, 0], [0, 2**40, 0]]))
    assert (half + half).pixel_accuracy == 2**42 / (2**42 + 2)
    below = Confusion.count(np.array([-1, 0, 1]), np.array([0, -1, 1]), classes=2)
    assert below.counts.tolist() == [[0, 0, 1], [0, 1, 0]]
    labels = np.full(1000, 254, np.uint8)
    for many in (255, 300):
        assert Confusion.count(labels, labels, classes=many).counts[254, 254] == 1000


def test_mismatches_are_refused() -> None:
    one = np.zeros(1, int)
    with pytest.raises(ValueError):
        Confusion.count(np.zeros(2, int), np.zeros(3, int), classes=2)
    with pytest.raises(ValueError):
        Confusion.count(one, one, 2) + Confusion.count(one, one, 3)
    with pytest.raises(ValueError):
        Confusion(np.zeros((2, 2), np.int64))
