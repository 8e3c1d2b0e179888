"""What the ids of labels mean for a class map, as ids and polygons are told on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.burn import NO_LABEL, VECTOR_SUFFIXES, Burn
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import InputError, OptionError

UNKNOWN = -1
"""Stands for a label that is neither a class nor ignored."""
_TABLE = 2**16
"""Label ids from 0 on that are looked up in a table; the few others are compared one by one."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What label ids mean."""

    ignore: tuple[int, ...] = ()
    """Label ids to leave out, beside 255 and nodata."""
    renamed: tuple[tuple[int, int], ...] = ()
    """Pairs of a label id and the class id it stands for."""

    def __post_init__(self) -> None:
        sources = [source for source, _ in self.renamed]
        for source, target in self.renamed:
            said = f"--map {source}={target}"
            if source == NODATA or source in self.ignore:
                raise OptionError(f"{said}: label {source} is ignored ({NODATA} always is); drop one of the two")
            if sources.count(source) > 1:
                raise OptionError(f"{said}: label {source} is mapped twice; give one class for it")
            if not 0 <= target < NODATA:
                raise OptionError(
                    f"{said}: class ids are 0 to {NODATA - 1}; to leave a label out say --ignore {source}"
                )


def polygons_mean(
    field: str | None, values: tuple[tuple[str, int], ...], burn: int | None, background: int | None, layer: str | None
) -> Burn | None:
    """What the options say of polygons; None when none was given. OptionError when they contradict each other."""
    if field is None and not values and burn is None and background is None and layer is None:
        return None
    if (field is None) != (not values):
        given = f"--field {field}" if values == () else f"--value {values[0][0]}={values[0][1]}"
        raise OptionError(f"{given}: --field and --value belong together; give both")
    if field is not None and burn is not None:
        raise OptionError(f"--burn {burn}: --field {field} and its values say already what polygons are; drop one")
    twice = [name for name, _ in values if [other for other, _ in values].count(name) > 1]
    if twice:
        raise OptionError(f"--value {twice[0]}: given twice; give one id for it")
    return Burn(
        field=field,
        values=dict(values),
        burn=1 if burn is None else burn,
        background=0 if background is None else background,
        layer=layer,
    )


class Translation:
    """Turns label ids into class ids."""

    def __init__(self, meaning: Meaning, classes: Sequence[int] | None) -> None:
        """For a map with these `classes`; None: any id from 0 to 254 is one.

        OptionError when a label is mapped to a class that is not there.
        """
        known = list(range(NODATA) if classes is None else classes)
        for source, target in meaning.renamed:
            if target not in known:
                raise OptionError(f"--map {source}={target}: the map has no class {target}; it has {listed(known)}")
        self._table = np.full(_TABLE + 1, UNKNOWN, np.int16)  # the last entry is for all ids beyond the table
        self._table[known] = known
        self._table[NODATA] = NODATA
        meant = {**dict.fromkeys(meaning.ignore, NODATA), **dict(meaning.renamed), NO_LABEL: NODATA}
        self._beyond = {source: target for source, target in meant.items() if not 0 <= source < _TABLE}
        for source in meant.keys() - self._beyond.keys():
            self._table[source] = meant[source]

    def of(self, labels: NDArray[np.int32]) -> NDArray[np.int16]:
        """The class id of each label, 255 where it does not count, UNKNOWN where nothing says what it means."""
        ids: NDArray[np.int16] = self._table[np.where((labels >= 0) & (labels < _TABLE), labels, _TABLE)]
        for source, target in self._beyond.items():
            ids[labels == source] = target
        return ids


def check_kind(labels: Path, burn: Burn | None) -> None:
    """OptionError when polygons come without a word of what they mean, or a raster with one.

    InputError for a folder.
    """
    if labels.is_dir():
        raise InputError(
            f"{labels}: labels are read from rasters and polygons, not from a folder; give NAME.classes.tif instead"
        )
    polygons = labels.suffix.lower() in VECTOR_SUFFIXES
    if polygons and burn is None:
        raise OptionError(
            f"{labels}: what do its polygons mean? Give --field NAME and --value VALUE=CLASS for each class, "
            "or --burn CLASS if all are one"
        )
    if burn is not None and not polygons:
        raise OptionError(
            f"{labels}: --field, --value, --burn and --background are for polygons "
            f"({', '.join(VECTOR_SUFFIXES)}), and this is a raster; leave them out"
        )


def listed(ids: Sequence[int]) -> str:
    """Ids in a message: the first ten, and how many more there are.

    >>> listed([3, 4]), listed(range(12))
    ('3, 4', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more')
    """
    texts = [str(i) for i in ids]
    return ", ".join(texts[:10]) + (f" and {len(texts) - 10} more" if len(texts) > 10 else "")
