"""Changes to the program that each break one promise; for the process that calls them, and for good.

Each one is a mistake that somebody could make, in the place where it would be made.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fcn_batch.pipeline.core import claims, durable, journal, plan
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.raster import classmap
from fcn_batch.pipeline.store import classstore as store
from fcn_batch.workflows import run
from fcn_batch.workflows.blocks.commit import Block, Committer
from fcn_batch.workflows.outputs import finish
from fcn_batch.workflows.outputs import publishing as outputs
from fcn_batch.workflows.outputs.publishing import Outputs

MUTANTS: dict[str, Callable[[], None]] = {}


def _replace(where: object, name: str, by: object) -> None:
    assert hasattr(where, name), "the program has changed: the mutant would change nothing"
    setattr(where, name, by)


def _mutant(change: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[change.__name__.removeprefix("_")] = change
    return change


@_mutant
def _receipt_before_data() -> None:
    proper = Committer.commit

    def commit_early(self: Committer, block: Block) -> Receipt:
        self.journal.commit(self._receipt(block))
        return proper(self, block)

    _replace(Committer, "commit", commit_early)


@_mutant
def _written_in_place() -> None:
    def write_whole(path: Path, data: bytes | str) -> None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        durable.sync([path, path.parent])

    for module in (journal, finish):
        _replace(module, "write_whole", write_whole)


@_mutant
def _sealed_before_the_last_output() -> None:
    proper = finish.finish

    def seal_early(brief: finish.Brief, outputs: Outputs, *rest: Any) -> None:
        made = outputs.names(confidence=brief.plan.confidence, pyramid=False)
        outputs.journal.seal(outputs.report, {"outputs": made, "classes": [], "nodata_pixels": 0, "unreadable": []})
        proper(brief, outputs, *rest)

    _replace(run, "finish", seal_early)


@_mutant
def _published_before_the_last_block() -> None:
    """Blocks and outputs are as they must be in the end, but a report appears early."""
    proper = Committer.commit

    def commit_and_tell(self: Committer, block: Block) -> Receipt:
        if len(list(self.journal.receipts())) == len(self.plan.grid) - 1:
            report = self.journal.folder.with_suffix(".run.json")
            report.write_text(json.dumps({"complete": True, "plan": self.plan.model_dump(mode="json")}))
        return proper(self, block)

    _replace(Committer, "commit", commit_and_tell)


@_mutant
def _report_renamed_first() -> None:
    def publish(self: Outputs) -> None:
        for name in (self.report, *self.staged_report()["outputs"]):
            self._move(name)
        self.journal.discard()

    _replace(Outputs, "publish", publish)


@_mutant
def _fingerprint_without_a_field() -> None:
    _replace(plan, "_NOT_IDENTITY", {"input": {"path"}, "model": {"path", "sha256"}})


@_mutant
def _no_fsync() -> None:
    def sync(paths: Iterable[Path]) -> None:
        list(paths)

    for module in (durable, journal, store, classmap, outputs, run):
        _replace(module, "sync", sync)


@_mutant
def _no_fsync_of_folders() -> None:
    proper = durable.sync

    def sync(paths: Iterable[Path]) -> None:
        proper(path for path in paths if not path.is_dir())

    for module in (durable, journal, store, classmap, outputs, run):
        _replace(module, "sync", sync)


@_mutant
def _a_chunk_is_a_receipt() -> None:
    proper = Journal.receipt

    def receipt(self: Journal, block: int, fingerprint: str) -> Receipt | None:
        known = proper(self, block, fingerprint)
        if known is None and (stores := list(self.folder.glob("*.classes.zarr"))):
            committer = Committer.of(self, stores[0].name, None)
            window = committer.plan.grid[block]
            if (stores[0] / "classes" / "c" / str(window.row // 32) / str(window.col // 32)).exists():
                layers = committer.classes.read(window)[np.newaxis]
                return committer._receipt(Block(block, layers, committer.plan.cut.tile))
        return known

    _replace(Journal, "receipt", receipt)


@_mutant
def _claims_exclude_nobody() -> None:
    proper = claims.Claims.take

    def take(self: claims.Claims, name: str) -> "claims.Claim | None":
        return proper(self, f"{name}-{os.getpid()}")

    _replace(claims.Claims, "take", take)


@_mutant
def _the_dead_keep_their_claims() -> None:
    def lives(_self: claims.Claims, _path: Path, _descriptor: int) -> bool:
        return True

    _replace(claims.Claims, "_lives", lives)
    _replace(claims, "_inherit", lambda _path: None)


@_mutant
def _lock_excludes_nobody() -> None:
    @contextmanager
    def only_one(*_: object) -> Iterator[None]:
        yield

    _replace(run, "only_one", only_one)


@_mutant
def _hashes_are_not_compared() -> None:
    _replace(Committer, "holds", lambda _self, _receipt: True)


@_mutant
def _any_plan_is_resumed() -> None:
    _replace(plan.Plan, "differences", lambda _self, _other: [])


@_mutant
def _deleted_without_renaming() -> None:
    def discard(self: Journal) -> None:
        for path in sorted(self.folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.folder.rmdir()

    _replace(Journal, "discard", discard)


@_mutant
def _orphans_write() -> None:
    proper = Committer.commit

    def commit_blindly(self: Committer, block: Block) -> Receipt:
        earlier = Journal.earlier_plan
        _replace(Journal, "earlier_plan", lambda _self: self.plan)
        try:
            return proper(self, block)
        finally:
            _replace(Journal, "earlier_plan", earlier)

    _replace(Committer, "commit", commit_blindly)


@_mutant
def _finished_blocks_are_done_again() -> None:
    proper = run._Blocks.take_up

    def take_up(self: run._Blocks, mine: Collection[int]) -> Iterator[Receipt]:
        yield from proper(self, mine)
        if 0 < len(self.done) < len(self.brief.plan.grid):
            self.outputs.journal.drop(self.done.pop())

    _replace(run._Blocks, "take_up", take_up)


@_mutant
def _old_outputs_stay_told_of() -> None:
    """While new ones are renamed over them."""
    proper = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if not self.name.endswith(".run.json"):
            proper(self, missing_ok)

    _replace(Path, "unlink", unlink)
