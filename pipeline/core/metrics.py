"""How well a class map agrees with the truth: the four numbers of the FCN paper and more, from one confusion matrix.

The matrix is counted over a whole data set and only then turned into numbers, never averaged over images
(Long, Shelhamer and Darrell 2015, section 5; `score.py` of the authors' repository). Matrices of parts
simply add up, so blocks may be counted in any order and anywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Pixels of each true class (rows) that were given each class (columns).

    >>> truth, predicted = np.array([0, 0, 1, 1, 255]), np.array([0, 1, 1, 255, 0])
    >>> score = Confusion.count(truth, predicted, classes=2)
    >>> score.counts.tolist(), score.pixel_accuracy, score.iu.tolist()
    ([[1, 1, 0], [0, 1, 1]], 0.5, [0.5, 0.3333333333333333])
    """

    counts: NDArray[np.int64]
    """(n, n + 1) pixel counts. The last column holds pixels whose truth is known and whose prediction is
    no class (nodata): an error of the true class that no other class is charged for."""

    def __post_init__(self) -> None:
        shape = self.counts.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != shape[0] + 1 or self.counts.dtype != np.int64:
            raise ValueError(f"counts are int64 of shape (n, n + 1), got {self.counts.dtype} {shape}")

    @classmethod
    def count(cls, truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> "Confusion":
        """Count two integer label arrays of one shape; classes are the labels 0 to ``classes - 1``.

        Pixels whose truth is 255 or no class are left out. ValueError when the arrays do not match.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth has shape {truth.shape} but the prediction {predicted.shape}")
        known = (truth >= 0) & (truth < classes) & (truth != NODATA)
        true, given = truth[known].astype(np.int64), predicted[known]
        is_class = (given >= 0) & (given < classes)
        column = np.where(is_class, given.astype(np.int64), classes)
        cells = classes * (classes + 1)
        flat = np.bincount(true * (classes + 1) + column, minlength=cells)
        return cls(flat.reshape(classes, classes + 1).astype(np.int64))

    @classmethod
    def empty(cls, classes: int) -> "Confusion":
        """No pixel counted yet: what a sum starts from."""
        return cls(np.zeros((classes, classes + 1), dtype=np.int64))

    def restricted(self, ids: tuple[int, ...]) -> "Confusion":
        """The matrix of these classes alone, in this order, with the last column of no class.

        ValueError when a class that is left out has pixels: they would vanish from every number.
        """
        chosen = np.ix_(list(ids), [*ids, self.counts.shape[0]])
        left_out = int(self.counts.sum() - self.counts[chosen].sum())
        if left_out:
            raise ValueError(f"{left_out} pixels are of classes other than {', '.join(map(str, ids))}")
        return Confusion(self.counts[chosen])

    def __add__(self, other: "Confusion") -> "Confusion":
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"cannot add matrices of {self.counts.shape[0]} and {other.counts.shape[0]} classes")
        return Confusion(self.counts + other.counts)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The square part, (n, n): without the predictions that are no class."""
        return self.counts[:, :-1]

    @property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.matrix)

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth, (n,)."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Pixels given each class among those whose truth is known, (n,)."""
        return np.asarray(self.matrix.sum(axis=0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each true class's pixels that were given it, (n,); nan where a class is not in the truth."""
        return ratio(self._hits, self.truth)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the pixels given each class that are of it, (n,); nan where a class was never given."""
        return ratio(self._hits, self.predicted)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels given their true class; nan without pixels."""
        return float(ratio(self._hits.sum(), self.counts.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of the share of their pixels that were found."""
        return mean_of_known(self.recall)

    @property
    def iu(self) -> NDArray[np.float64]:
        """Intersection over union of each class, (n,); nan where a class is in neither map."""
        return ratio(self._hits, self.truth + self.predicted - self._hits)

    @property
    def mean_iu(self) -> float:
        """Mean of `iu` without the nans: a class predicted but not in the truth counts as 0."""
        return mean_of_known(self.iu)

    @property
    def frequency_weighted_iu(self) -> float:
        """`iu` weighted by the classes' share of the truth; nan without pixels."""
        present = self.truth > 0
        weighted = (self.truth[present] * self.iu[present]).sum()
        return float(ratio(weighted, self.truth.sum()))

    @property
    def summary(self) -> dict[str, float]:
        """The four numbers of the paper, by name."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
        return {name: getattr(self, name) for name in names}


def ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """``part / whole``, nan where `whole` is 0, without numpy's warning."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    share = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not nan; nan when there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
