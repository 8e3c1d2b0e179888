"""Nothing is published unseen: every kind of file in a staging folder, damaged in every way, at every time of its end.

The kinds are found by looking into the folder, so what is added to it is tried too. Afterwards the same command makes
the map of an undisturbed run, and says what was damaged; or it fails, and there is no report.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.validate import validate
from fcn_batch.workflows.outputs.publishing import Outputs
from tests.models import save_tiny_model
from tests.runs import fcn_batch, output_bytes, scene, segmented, small_blocks


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were killed near their end, and of one that was not."""
    folder = tmp_path_factory.mktemp("ends")
    model = save_tiny_model(folder / "tiny.safetensors", fc_kernel=1)
    original = scene(folder / "a.tif")
    other: dict[str, Path] = {}
    for name in ("whole", "other", "before sealing", "sealed", "half moved"):
        made = folder / name
        made.mkdir()
        raster = made / "a.tif"
        if name == "other":
            scene(raster, nodata=7)
        else:
            shutil.copy2(original, raster)  # with its time: the same input
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch)
            command = ("segment", raster, "-m", model, "--confidence", "-q")
            if name == "whole":
                segmented(*command[1:])
                other[name] = made
                continue
            if name == "before sealing":
                patch.setattr("fcn_batch.workflows.run.finish", _die)
            elif name == "half moved":
                patch.setattr(Outputs, "_move", _dies_after(3))
            else:
                patch.setattr(Outputs, "publish", _die)
            with pytest.raises(Killed):
                fcn_batch(*command)
        other[name] = made
    return other


def _die(*_: object, **__: object) -> None:
    raise Killed


def _dies_after(count: int) -> Callable[[Outputs, str], None]:
    move = Outputs._move
    moved: list[str] = []

    def moving(outputs: Outputs, name: str) -> None:
        if len(moved) == count:
            raise Killed
        moved.append(name)
        move(outputs, name)

    return moving


def _truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _deleted(path: Path, _: Path) -> None:
    path.unlink()


def _replaced(path: Path, other: Path) -> None:
    """By the same file of another run, or a neighbour of its kind."""
    shutil.copyfile(other, path)


DAMAGES = {"truncated": _truncated, "flipped": _flipped, "deleted": _deleted, "replaced": _replaced}


def _kinds(folder: Path) -> dict[str, list[Path]]:
    """What a run has made so far, by kind: files in one folder with one ending are of one."""
    made = [one for one in folder.iterdir() if one.name.startswith("a.") and one.name != "a.tif"]
    files = [path for one in made for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file()]
    kinds: dict[str, list[Path]] = {}
    for path in sorted(files):
        inside = path.relative_to(folder)
        number = inside.parent.parent / "*" if "c" in inside.parts else inside.parent
        what = "*" if path.stem.isdecimal() or path.name.isdecimal() else path.name
        kinds.setdefault(str(number / what), []).append(path)
    return {kind: paths for kind, paths in kinds.items() if "claims" not in kind}


_FIRST = {("before sealing", "truncated"), ("sealed", "flipped"), ("half moved", "deleted")}


@pytest.mark.parametrize(
    ("when", "damage"),
    [
        pytest.param(when, damage, marks=[] if (when, damage) in _FIRST else pytest.mark.faults)
        for when in ("before sealing", "sealed", "half moved")
        for damage in DAMAGES
    ],
)
def test_every_kind_of_file(ends: dict[str, Path], tmp_path: Path, when: str, damage: str) -> None:
    kinds = _kinds(ends[when])
    assert len(kinds) >= (6 if when == "before sealing" else 11), sorted(kinds)
    expected = output_bytes(ends["whole"], "a")
    for number, (kind, paths) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        shutil.copytree(ends[when], folder)  # with its times: the input is the same
        victim = folder / paths[-1].relative_to(ends[when])
        twin = ends["other"] / "a.partial" / victim.relative_to(folder).as_posix().removeprefix("a.partial/")
        other = twin if twin.exists() else folder / paths[0].relative_to(ends[when])
        if damage == "replaced" and (not other.exists() or other.read_bytes() == victim.read_bytes()):
            continue
        DAMAGES[damage](victim, other)
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch)
            model = ends["whole"].parent / "tiny.safetensors"
            result = fcn_batch("segment", folder / "a.tif", "-m", model, "--confidence")
        report = folder / "a.run.json"
        if result.exit_code:
            assert not report.exists(), (kind, result.stderr)
            raise AssertionError((kind, result.stderr))
        assert output_bytes(folder, "a") == expected, kind
        assert validate(report, Quiet()).ok, kind
        assert not (folder / "a.partial").exists(), kind


def test_damage_that_comes_again_and_again_ends_the_run(
    ends: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ends["sealed"], tmp_path / "a")
    monkeypatch.setattr(Outputs, "damaged", lambda outputs: [outputs.cog])
    small_blocks(monkeypatch)
    model = ends["whole"].parent / "tiny.safetensors"
    result = fcn_batch("segment", tmp_path / "a" / "a.tif", "-m", model, "--confidence")
    assert result.exit_code != 0
    assert not (tmp_path / "a" / "a.run.json").exists()
    monkeypatch.undo()
    small_blocks(monkeypatch)
    segmented(tmp_path / "a" / "a.tif", "-m", model, "--confidence")
    assert json.loads((tmp_path / "a" / "a.run.json").read_text())["timing"]["blocks_done_by_earlier_runs"] == 9
