"""G12: whatever becomes of any file of the outputs, `validate` finds it; what it need not find is listed here."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import pytest

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.validate import validate
from fcn_batch.workflows.outputs.checksums import signed
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import DEGREES, segmented, small_blocks

REPORT, SIDE_FILE = "a.run.json", "a.classes.tif.aux.xml"
PARTS = 4
THIRD = "a.classes.zarr/classes/c/2/0"
Damage = Callable[[bytes, Random], bytes | None]
"""What a file holds afterwards; None: it is gone."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All that a run can make: 5 blocks, a pyramid of two levels; nothing is kept of the third block: no data."""
    folder = tmp_path_factory.mktemp("made")
    model = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        values = noise(3, 530, 100) | 1
        values[:, 256:384] = 0
        write_raster(folder / "a.tif", values, nodata=0, crs="EPSG:4326", transform=DEGREES, photometric="RGB")
        segmented(folder / "a.tif", "-m", model, "-q", "--confidence", "--pyramid")
    (folder / "a.tif").unlink()
    assert found_right(folder)
    yield folder
    assert found_right(folder)


def found_right(folder: Path) -> bool:
    try:
        return validate(folder / REPORT, Quiet()).ok
    except InputError:  # no report, no outputs
        return False


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flipped(data: bytes, random: Random, mask: int) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= mask
    return bytes(changed)


ONE: dict[str, Damage] = {
    "one bit": lambda data, random: _flipped(data, random, 1 << random.randrange(8)),
    "one byte": lambda data, random: _flipped(data, random, random.randrange(1, 256)),
    "cut off": lambda data, random: data[: random.randrange(1, len(data))],
    "one byte less": lambda data, _: data[:-1],
    "one byte more": lambda data, _: data + b"\0",
    "emptied": lambda _data, _: b"",
    "gone": lambda _data, _: None,
}
DAMAGES = {"some": ["one bit", "one byte", "cut off", "gone"], "all": [*["one bit", "one byte"] * 7, *ONE]}


def harmless(name: str, before: bytes, after: bytes | None) -> bool:
    """True for damage that no reader of the file can see, or that is in a part which is others' to write.

    - The report: other white space, as between the entries of JSON.
    - GDAL's side file: whatever is outside of names and colours, where GDAL adds statistics. What it says of the place
      is read and compared, so only words in it that mean nothing, as the name of a system, go unseen.
    """
    try:
        if name == REPORT:
            return after is not None and bool(json.loads(before) == json.loads(after))
        if name == SIDE_FILE:
            return after is not None and names_in(before) == names_in(after)
    except (ValueError, ET.ParseError):
        return False
    return False


def names_in(data: bytes) -> list[tuple[str, dict[str, str], str]]:
    found = ET.fromstring(data)  # noqa: S314 - made here
    parts = [part for band in found.iter("PAMRasterBand") for part in band]
    assert {part.tag for part in parts} <= {"CategoryNames", "GDALRasterAttributeTable"}
    return [(one.tag, one.attrib, (one.text or "").strip()) for part in parts for one in part.iter()]


def unnoticed(folder: Path, path: Path, damages: list[str], seed: int) -> tuple[int, int, list[str]]:
    """Try all damages of a file: how many counted, how many did no harm, and which ones were not found."""
    name = str(path.relative_to(folder))
    before, random, faults, spared = path.read_bytes(), Random(f"{seed} {name}"), [], 0  # noqa: S311 - the same each time
    for number, damage in enumerate(damages):
        after = ONE[damage](before, random)
        if harmless(name, before, after):
            spared += 1
            continue
        path.unlink() if after is None else path.write_bytes(after)
        try:
            if found_right(folder):
                faults.append(f"{name}: {damage} ({number})")
        finally:
            path.write_bytes(before)
    return len(damages) - spared, spared, faults


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("which", ["some", pytest.param("all", marks=pytest.mark.faults)])
def test_every_damage_to_every_file_is_found(made: Path, which: str, part: int) -> None:
    endings = (".zarr", ".tif", ".tif.aux.xml", ".qml", ".stac.json", ".run.json")
    assert all(any(path.name.endswith(ending) for path in made.iterdir()) for ending in endings)
    assert len(files_of(made)) >= 50
    assert not (made / THIRD).exists()
    files = files_of(made)[part::PARTS]
    tried = [unnoticed(made, path, DAMAGES[which], seed=0) for path in files]
    counted, spared = sum(one[0] for one in tried), sum(one[1] for one in tried)
    sys.stdout.write(f"{len(files)} files, {counted} damages, {spared} more that nobody could see\n")  # pytest -s
    assert [fault for one in tried for fault in one[2]] == []
    assert spared <= 0.02 * counted


def test_every_chunk_in_the_place_of_another_is_found(made: Path) -> None:
    chunks = [path for path in files_of(made) if path.parent.parent.name == "c"]
    assert len({path.parents[2] for path in chunks}) == 5, "classes, confidence, margin, and classes of two levels"
    for path in chunks:
        before = path.read_bytes()
        others = [one.read_bytes() for one in chunks if one.parents[2] == path.parents[2] and one != path]
        assert before not in others
        try:
            for other in others:
                path.write_bytes(other)
                assert not found_right(made), path
        finally:
            path.write_bytes(before)


def test_a_chunk_that_decodes_to_the_same_pixels_is_found(made: Path) -> None:
    """Zstandard skips what a frame of its own says is to be skipped."""
    path = made / "a.classes.zarr/classes/c/1/0"
    before = path.read_bytes()
    path.write_bytes(before + b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab")
    try:
        checks = {check.name: check.ok for check in validate(made / REPORT, Quiet()).checks}
    finally:
        path.write_bytes(before)
    assert not checks.pop("checksums")
    assert all(checks.values()), "its pixels are the same"


STRAYS = (THIRD, "a.classes.zarr/classes/c/0/7", "a.classes.zarr/classes/c/9/9", "a.classes.zarr/.zgroup")


@pytest.mark.parametrize("name", [*STRAYS, "a.pyramid.zarr/0/x/y"])
def test_a_file_that_is_no_part_of_a_store_is_named(made: Path, name: str) -> None:
    path = made / name
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    try:
        faults = [fault for check in validate(made / REPORT, Quiet()).checks for fault in check.faults]
    finally:
        path.unlink()
        for folder in new:
            folder.rmdir()
    assert f"{path}: not made by the run" in faults


def test_a_folder_in_the_place_of_a_file_is_found(made: Path, tmp_path: Path) -> None:
    """But parts of the input that were unreadable are no fault: they are no data, and the report lists them."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("a.classes.zarr/classes/c/1/0", "a.classes.tif", SIDE_FILE, "a.stac.json"):
        path = tmp_path / name
        path.unlink()
        path.mkdir()
        assert not found_right(tmp_path), name
        path.rmdir()
        shutil.copyfile(made / name, path)
    assert found_right(tmp_path)
    report = json.loads((tmp_path / REPORT).read_bytes())
    report["unreadable"] = [{"row": 0, "col": 0, "height": 64, "width": 64}]
    (tmp_path / REPORT).write_text(json.dumps(signed(report)))
    assert found_right(tmp_path)
