"""What lies on the disk: outputs as they must be, and what an interrupted run has left."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.pipeline.core.plan import Plan
from tests.faults.job import STEM, Task

Tree = dict[str, bytes]
"""Files below a folder and what is in them; folders with nothing."""


def tree(folder: Path) -> Tree:
    """All that lies in `folder`; times and the counts of what runs did are left out of the report and the item."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name + "/" * path.is_dir()] = b"" if path.is_dir() else _content(path)
    return found


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == f"{STEM}.run.json":
        report = json.loads(data)
        report.pop("timing", None)
        report.pop("report_sha256", None)  # of what is left out here, too
        report.get("checksums", {}).pop(f"{STEM}.stac.json", None)
        return json.dumps(report).encode()
    if path.name == f"{STEM}.stac.json":
        item: dict[str, Any] = json.loads(data)
        for name in ("datetime", "created", "processing:datetime"):
            del item["properties"][name]
        return json.dumps(item).encode()
    return data


def wrong(folder: Path, expected: Tree) -> list[str]:
    """How the outputs in `folder` differ from what they must be; what is too many counts as well."""
    try:
        found = tree(folder)
    except (OSError, ValueError, KeyError) as error:
        return [f"wrong: outputs cannot be read: {error!r}"]
    names = sorted(found.keys() | expected.keys())
    complaints = [f"wrong: {name} {_how(found, expected, name)}" for name in names if _how(found, expected, name)]
    return complaints or _wrong_checksum(folder)


def _how(found: Tree, expected: Tree, name: str) -> str:
    if name not in found:
        return "is missing"
    if name not in expected:
        return "is a stray"
    return "has other bytes" if found[name] != expected[name] else ""


def _wrong_checksum(folder: Path) -> list[str]:
    """Of the item, which holds times; the others are compared with the report."""
    told = json.loads((folder / f"{STEM}.run.json").read_bytes())["checksums"][f"{STEM}.stac.json"]
    found = hashlib.sha256((folder / f"{STEM}.stac.json").read_bytes()).hexdigest()
    return [f"wrong: checksum of {STEM}.stac.json"] if told != found else []


def falsely_done(folder: Path, expected: list[Tree]) -> list[str]:
    """Complaints when a report says that outputs are complete which are not; `expected`: what they may be.

    Files on their way (NAME.partial, hidden ones) may lie beside them.
    """
    if not (folder / f"{STEM}.run.json").exists():
        return []
    try:
        found = tree(folder)
    except (OSError, ValueError, KeyError) as error:
        return [f"false done: {error!r}"]
    outputs = {name: data for name, data in found.items() if not name.startswith((".", f"{STEM}.partial"))}
    if outputs in expected:
        return []
    nearest = min(expected, key=lambda one: sum(outputs.get(name) != data for name, data in one.items()))
    differ = [name for name in sorted(outputs.keys() | nearest.keys()) if outputs.get(name) != nearest.get(name)]
    return [f"false done: {differ[0]} and {len(differ) - 1} others"]


def finished_blocks(task: Task, expected: Tree) -> tuple[set[int], list[str]]:
    """Blocks with a receipt of the task's plan in its staging folder, and complaints of those that are not so."""
    outputs, plan, complaints = task.outputs, task.plan, []
    done = set()
    for path in (outputs.staging / "receipts").glob("[0-9]*.json"):
        try:
            receipt = Receipt.model_validate_json(path.read_bytes())
        except ValidationError:
            complaints.append(f"torn receipt: {path.name}")
            continue
        if receipt.plan != plan.fingerprint:
            continue
        done.add(receipt.block)
        complaints += [
            f"receipt without its block: {name}"
            for name, data in _chunks(task, plan, receipt.block).items()
            if data != expected.get(name)
        ]
    return done, complaints


def _chunks(task: Task, plan: Plan, block: int) -> dict[str, bytes | None]:
    """The chunk files of a block by their names in the outputs, wherever they are now; None where there is none."""
    outputs, window = task.outputs, plan.grid[block]
    place = f"c/{window.row // plan.cut.chunk}/{window.col // plan.cut.chunk}"
    names = [f"{outputs.store}/classes/{place}"]
    if plan.confidence:
        names += [f"{outputs.confidence}/{array}/{place}" for array in ("confidence", "margin")]
    found: dict[str, bytes | None] = {}
    for name in names:
        staged = (outputs.staging / name.partition("/")[0]).exists()
        file = (outputs.staging if staged else outputs.folder) / name
        found[name] = file.read_bytes() if file.exists() else None
    return found
