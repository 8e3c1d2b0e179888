"""A block whose last row is decided, on its way to the disk: its pixels first, durable, then its receipt.

Knows neither the network nor how the block was made, so that every point of the way can be tried with failures.
"""

import hashlib
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import MismatchError, OutputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.holder import Holder
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.store.classstore import ClassStore, ConfidenceStore


@dataclass(frozen=True, slots=True)
class Block:
    """A block that is decided."""

    index: int
    layers: NDArray[np.uint8]
    """(1 or 3, rows, cols): class ids and, if wanted, how sure they are."""
    tile: int
    """Rows of a strip, or side of a tile."""
    passes: int = 0
    """Strips or tiles that the network saw for it."""
    forwarded: int = 0
    """Pixels in them."""
    seconds: float = 0.0
    unreadable: tuple[Window, ...] = ()
    """Parts of the input that it looks at and that could not be read."""
    missing: dict[str, int] = field(default_factory=dict)
    """Pixels without data by the reason."""
    rules_differ: int = 0
    """Pixels of which the two rules for nodata say different things."""


@dataclass(frozen=True, slots=True)
class Committer:
    """Brings blocks of `plan` into a staging folder."""

    plan: Plan
    journal: Journal
    classes: ClassStore
    confidence: ConfidenceStore | None
    """None when the plan wants none."""
    row_areas: NDArray[np.float64] | None
    """Square metres of a pixel in each row; None where they are not known."""
    mixed: tuple[str, ...] = ()
    """How this process differs from the plan's kernel."""

    @classmethod
    def of(cls, journal: Journal, store: str, confidence: str | None, mixed: tuple[str, ...] = ()) -> "Committer":
        """For the plan and the stores in the journal's folder; `store` and `confidence` are their names.

        ValueError when plan and names disagree on whether there are confidences.
        """
        plan = journal.plan()
        if plan.confidence == (confidence is None):
            raise ValueError(f"the plan has confidence {plan.confidence}, its stores {store} and {confidence}")
        sure = None if confidence is None else ConfidenceStore(journal.folder / confidence)
        areas = row_areas_m2(plan.input.georeference, plan.input.size)
        return cls(plan, journal, ClassStore(journal.folder / store), sure, areas, mixed)

    def commit(self, block: Block) -> Receipt:
        """Bring a block to the disk, then its receipt.

        MismatchError when the staging folder is another run's by now: an orphan must not write into its stores.
        """
        if not self.journal.is_of(self.plan):
            raise MismatchError(
                "staging-taken",
                "{path}: another run took this folder over; this one's block is dropped",
                path=self.journal.folder,
            )
        window, classes, planes = self.plan.grid[block.index], block.layers[0], block.layers[1:]
        self.classes.write(window, classes)
        if self.confidence is not None:
            self.confidence.write(window, planes)
        receipt = self._receipt(block)
        self.journal.commit(receipt)
        return receipt

    def _receipt(self, block: Block) -> Receipt:
        window, classes, planes = self.plan.grid[block.index], block.layers[0], block.layers[1:]
        by_row = np.stack([np.bincount(row, minlength=256) for row in classes])
        counts = by_row.sum(axis=0)
        present = [int(i) for i in np.flatnonzero(counts)]
        areas = None
        if self.row_areas is not None:
            area = self.row_areas[window.row : window.stop_row] @ by_row
            areas = {i: float(area[i]) for i in present}
        return Receipt(
            plan=self.plan.fingerprint,
            block=block.index,
            sha256=sha256(block.layers[:1]),
            confidence_sha256=None if self.confidence is None else sha256(planes),
            shape=(window.height, window.width),
            pixels={i: int(counts[i]) for i in present},
            missing=block.missing,
            rules_differ=block.rules_differ,
            area_m2=areas,
            tile=block.tile,
            passes=block.passes,
            forwarded=block.forwarded,
            seconds=round(block.seconds, 3),
            by=Holder.here().process,
            finished=datetime.now(UTC),
            unreadable=tuple((w.row, w.col, w.height, w.width) for w in block.unreadable),
            mixed=self.mixed,
        )

    def holds(self, receipt: Receipt) -> bool:
        """True when a block is in the stores as its receipt says: a disk may have lost either since.

        Reads it whole, as `commit` has written it, and tells its receipt again.
        """
        if receipt.block >= len(self.plan.grid):
            return False
        window = self.plan.grid[receipt.block]
        try:
            layers = self.classes.read(window)[np.newaxis]
            if self.confidence is not None:
                layers = np.concatenate([layers, self.confidence.read(window)])
        except OutputError:
            return False
        found = self._receipt(Block(receipt.block, layers, receipt.tile))
        exact = ("sha256", "confidence_sha256", "shape", "pixels")
        return all(getattr(found, name) == getattr(receipt, name) for name in exact) and _agree(
            found.area_m2, receipt.area_m2
        )


def _agree(found: dict[int, float] | None, told: dict[int, float] | None) -> bool:
    """Areas, but for what another machine may round otherwise."""
    if found is None or told is None:
        return found is told
    return found.keys() == told.keys() and all(math.isclose(area, told[i], rel_tol=1e-9) for i, area in found.items())


def sha256(layers: NDArray[np.uint8]) -> str:
    """Of one layer after the other, each row by row: without a copy, though the last block is a part of its buffer."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(layer.data)
    return digest.hexdigest()
