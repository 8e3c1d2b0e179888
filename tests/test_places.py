"""Files of a data set: beside the recipe, in installed packages, by patterns."""

import sys
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.location import expand, resolve
from tests.errors import refuses


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, and a namespace package that lies in two places."""
    for name in ("one/loud/inner/a.tif", "one/spread/first.tif", "two/spread/second.tif", "two/spread/deep/b.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "one/loud/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    monkeypatch.syspath_prepend(str(tmp_path / "two"))
    return tmp_path


def test_plain_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").touch()
    assert resolve("in/a.tif", tmp_path) == tmp_path / "in" / "a.tif"
    assert resolve(str(tmp_path / "in" / "a.tif"), Path("/")) == tmp_path / "in" / "a.tif"
    with refuses("data-missing", path=tmp_path / "in"):
        resolve("in", tmp_path)
    with refuses("data-missing", path=tmp_path / "b.tif", remedy="get it there"):
        resolve("b.tif", tmp_path, hint="get it there")


def test_files_in_packages(packages: Path) -> None:
    assert resolve("package:loud/inner/a.tif", Path("/")) == packages / "one/loud/inner/a.tif"
    assert resolve("package:spread/first.tif", Path("/")) == packages / "one/spread/first.tif"
    assert resolve("package:spread/second.tif", Path("/")) == packages / "two/spread/second.tif"
    assert "loud" not in sys.modules
    assert "spread" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "package:no_such_thing/a.tif",
        "package:loud/b.tif",
        "package:loud",
        "package:/a.tif",
        "package:a.b/a.tif",
        "package:loud/../spread/first.tif",
        "package:loud//etc/hostname",
        "package:math/a.tif",
        "package:__main__/a.tif",
    ],
)
@pytest.mark.usefixtures("packages")
def test_packages_that_do_not_hold_it(text: str) -> None:
    with refuses("data-missing", path=text):
        resolve(text, Path("/"))
    with refuses("data-missing"):
        expand(text, Path("/"))


@pytest.mark.usefixtures("packages")
def test_what_to_install_can_be_said() -> None:
    for text in ("package:no_such_thing/a.tif", "package:loud/b.tif"):
        with refuses("data-missing", remedy="pip install loud==2"):
            resolve(text, Path("/"), hint="pip install loud==2")


def test_patterns(packages: Path) -> None:
    for name in ("b/2.tif", "a/1.tif", "a/1.png", "a/deep/3.tif"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    (packages / "a/folder.tif").mkdir()
    assert expand("[ab]/*.tif", packages) == [packages / "a/1.tif", packages / "b/2.tif"]
    assert expand("a/**/*.tif", packages) == [packages / "a/1.tif", packages / "a/deep/3.tif"]
    assert expand("a/1.png", packages) == [packages / "a/1.png"]
    assert expand(f"{packages}/a/*.png", Path("elsewhere")) == [packages / "a/1.png"]
    found = ["one/spread/first.tif", "two/spread/deep/b.tif", "two/spread/second.tif"]
    assert expand("package:spread/**/*.tif", packages) == [packages / name for name in found]
    with refuses("data-missing", path="*.jp2"):
        expand("*.jp2", packages)
