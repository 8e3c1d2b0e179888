"""The staging folder of a run: its plan, and one receipt for every finished block.

    NAME.partial/
        plan.json               what is being made; a run with another fingerprint is refused
        receipts/000000012.json block 12 is in the store, durable, with these counts and this hash
        claims/                 who is at work on which block; see `claims.py`
        NAME.classes.zarr/      the store, being filled
        NAME.run.json           only after everything else is complete: publishing has begun

A receipt is the only mark of a finished block (an empty chunk is not stored at all, and a stored one may be torn).
It is written after its block is on the disk, under a unique temporary name, then renamed: a block done twice, by
an orphan of a dead run say, writes the same bytes and the same receipt. What it says can be told again from the store.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from fcn_batch.pipeline.core.claims import Claims
from fcn_batch.pipeline.core.durable import sync, write_whole
from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.plan import Plan

_BLOCK = "block-"


class Receipt(BaseModel):
    """What is known of a finished block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    """Fingerprint of the plan it belongs to."""
    block: int
    """Index in the plan's grid."""
    sha256: str
    """Of the block's class ids, row by row."""
    confidence_sha256: str | None = None
    """Of its confidence planes, one after the other, row by row; None when the plan wants none."""
    shape: tuple[int, int]
    """Rows and columns."""
    pixels: dict[int, int]
    """Pixels of each class id that occurs; nodata too."""
    missing: dict[str, int] = {}
    """Pixels without data by the reason: nodata, alpha, ..."""
    rules_differ: int = 0
    """Pixels of which the two rules for several bands with a nodata value say different things."""
    area_m2: dict[int, float] | None
    """Square metres of each class id; None when the raster's place on the Earth is not known."""
    tile: int
    """Rows of a strip, or side of a tile; less than the plan's when memory was short."""
    passes: int
    """Strips or tiles that the network saw since the block above was decided: a strip may decide several blocks."""
    forwarded: int
    """Pixels in them, halo and padding included."""
    seconds: float
    """Time since the block above was decided, or since the pass began."""
    by: str
    """Who did it: ``process 4711 on node3``."""
    finished: AwareDatetime
    """When, by the clock of whoever did it."""
    unreadable: tuple[tuple[int, int, int, int], ...] = ()
    """Parts of the input that the block looks at and that could not be read: row, column, height and width of each."""
    mixed: tuple[str, ...] = ()
    """How what computed it differs from the plan's kernel; see `Plan.differences`."""


@dataclass(frozen=True, slots=True)
class Journal:
    """The staging folder at `folder`."""

    folder: Path

    @property
    def _plan_file(self) -> Path:
        return self.folder / "plan.json"

    @property
    def _receipts(self) -> Path:
        return self.folder / "receipts"

    @property
    def claims(self) -> Claims:
        """Of the runs that are at work here, and of blocks."""
        return Claims(self.folder / "claims")

    def begin(self, plan: Plan) -> bool:
        """Make the folder, or take up an interrupted run of the same plan; True when one was taken up.

        MismatchError, naming the differences, when the interrupted run was of another plan.
        """
        self.empty_trash()
        foreign = self.has_foreign_plan(plan)
        resumed = foreign or self._plan_file.exists()
        if resumed:
            differences = [] if foreign else self.plan().differences(plan)
            if differences:
                mixed = "--allow-mixed to go on with it here, " if self.plan().differs_by_machine(plan) else ""
                raise MismatchError(
                    "run-differs",
                    "{path}: an interrupted run lies here that was made with other settings ({differences}); give "
                    "{mixed}--restart to discard it, or the old settings to finish it",
                    path=self.folder,
                    differences="; ".join(differences),
                    mixed=mixed,
                )
        elif strays := self._strays():
            raise MismatchError(
                "staging-unknown",
                "{path}: holds {stray} but no plan.json, so it is not known to be a run's; give --restart to delete "
                "the folder, or choose another one with -o DIR",
                path=self.folder,
                stray=strays[0],
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._plan_file, plan.model_dump_json(indent=2))  # paths may have moved since
        self._receipts.mkdir(exist_ok=True)
        return resumed

    def has_foreign_plan(self, plan: Plan) -> bool:
        """Return whether the receipts here are of this plan, but the stored plan is another one, or not readable."""
        if self.is_of(plan):
            return False
        earlier = self.earlier_plan()
        fingerprints = {None if earlier is None else earlier.fingerprint, plan.fingerprint}
        blocks = [int(path.stem) for path in self._receipts.glob("*.json") if path.stem.isdecimal()]
        found = {mark for mark in fingerprints if mark and any(self.receipt(block, mark) for block in blocks)}
        return found == {plan.fingerprint}

    def earlier_plan(self) -> Plan | None:
        """The plan of an interrupted run that lies here, or None when there is none that can be read."""
        try:
            return self.plan()
        except MismatchError:
            return None

    def is_of(self, plan: Plan) -> bool:
        """True when a run of this very plan lies here."""
        earlier = self.earlier_plan()
        return earlier is not None and earlier.fingerprint == plan.fingerprint

    def plan(self) -> Plan:
        """The stored plan; MismatchError when it cannot be read."""
        try:
            return Plan.model_validate_json(self._plan_file.read_bytes())
        except (OSError, ValidationError) as error:
            raise MismatchError(
                "plan-unreadable",
                "{path}: cannot read the plan of the interrupted run ({error}); give --restart to discard the run",
                path=self._plan_file,
                error=type(error).__name__,
            ) from error

    def commit(self, receipt: Receipt) -> None:
        """Record a block whose data is durable in the store already."""
        write_whole(self._receipt_file(receipt.block), receipt.model_dump_json())

    def receipts(self) -> Iterator[Receipt]:
        """Receipts of the stored plan's finished blocks, in order; any other file counts as not there."""
        fingerprint = self.plan().fingerprint
        for path in sorted(self._receipts.glob("*.json")):
            if path.stem.isdecimal() and (receipt := self.receipt(int(path.stem), fingerprint)) is not None:
                yield receipt

    def receipt(self, block: int, fingerprint: str) -> Receipt | None:
        """The receipt of `block` in a plan of this fingerprint; None when there is none that can be used."""
        try:
            receipt = Receipt.model_validate_json(self._receipt_file(block).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return receipt if (receipt.plan, receipt.block) == (fingerprint, block) else None

    def drop(self, block: int) -> None:
        """Delete the receipt of `block`: it must be done again."""
        self._receipt_file(block).unlink(missing_ok=True)
        sync([self._receipts])

    def _receipt_file(self, block: int) -> Path:
        return self._receipts / f"{block:09d}.json"

    def forget(self) -> None:
        """Delete all receipts."""
        shutil.rmtree(self._receipts)
        self._receipts.mkdir()

    def seal(self, name: str, report: dict[str, object]) -> None:
        """Write the run's report: everything in this folder is complete, publishing may begin."""
        sync([self.folder])
        write_whole(self.folder / name, json.dumps(report, indent=2) + "\n")

    def discard(self) -> None:
        """Delete the folder with all that is in it.

        It is renamed first: were the deletion interrupted, receipts of blocks that are gone might be left.
        """
        self.empty_trash()
        self.folder.rename(self.trash)
        shutil.rmtree(self.trash)

    @property
    def trash(self) -> Path:
        """What the folder is called while it is deleted."""
        return self.folder.with_name(f".{self.folder.name}.discarded")

    def empty_trash(self) -> None:
        """Delete what an interrupted `discard` left."""
        if self.trash.exists():
            shutil.rmtree(self.trash)

    def _strays(self) -> list[str]:
        """Names in the folder that no interrupted `begin` leaves there."""
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        return [name for name in names if not name.endswith(".tmp")]


def claim_of(block: int) -> str:
    """The name of a block's claim.

    >>> claim_of(12), block_of(claim_of(12)), block_of("run-4711")
    ('block-000000012', 12, None)
    """
    return f"{_BLOCK}{block:09d}"


def block_of(claim: str) -> int | None:
    """The block that a claim is for; None when it is for something else."""
    number = claim.removeprefix(_BLOCK)
    return int(number) if number != claim and number.isdecimal() else None
