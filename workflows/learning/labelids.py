"""From the ids that labels hold to the classes that are meant: what training and evaluation have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.burn import NO_LABEL
from fcn_batch.pipeline.core.classes import NODATA

UNKNOWN = -1
"""Stands for a label that nothing names; as uint8 it is NODATA."""
_TABLE = 2**16
"""Label ids from 0 on that are looked up in a table; the few others are compared one by one."""


class Translation:
    """Turns label ids into classes.

    >>> Translation({7: 0, 300: 1}, ignore=[9]).of(np.array([300, 7, 9, 8])).tolist()
    [1, 0, 255, -1]
    """

    def __init__(self, classes: Mapping[int, int], ignore: Sequence[int]) -> None:
        """Take the class of each label id, and the ids to ignore unless they have a class."""
        meant = {**dict.fromkeys((NO_LABEL, *ignore), NODATA), **classes}
        self._table = np.full(_TABLE + 1, UNKNOWN, np.int16)  # the last entry is for all ids beyond the table
        self._beyond = {label: one for label, one in meant.items() if not 0 <= label < _TABLE}
        for label in meant.keys() - self._beyond.keys():
            self._table[label] = meant[label]

    def of(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
        """Return the class of each label, NODATA where it does not count, UNKNOWN where nothing says what it means."""
        found: NDArray[np.int16] = self._table[np.where((labels >= 0) & (labels < _TABLE), labels, _TABLE)]
        for label, one in self._beyond.items():
            found[labels == label] = one
        return found


def listed(ids: Sequence[int]) -> str:
    """Return ids as a message shows them: the first ten, and how many more there are.

    >>> listed([3, 4]), listed(range(12))
    ('3, 4', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more')
    """
    texts = [str(i) for i in ids]
    return ", ".join(texts[:10]) + (f" and {len(texts) - 10} more" if len(texts) > 10 else "")
