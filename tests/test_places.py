"""Files of a data set: beside the recipe, in installed packages, by patterns."""

import re
import sys
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.location import expand, resolve


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
    with pytest.raises(TrainingError, match=re.escape(f"{tmp_path}/in is a folder; name a file in it")):
        resolve("in", tmp_path)
    with pytest.raises(TrainingError, match=re.escape(f"{tmp_path}/b.tif does not exist; get it there")):
        resolve("b.tif", tmp_path, hint="get it there")


def test_files_in_packages(packages: Path) -> None:
    assert resolve("package:loud/inner/a.tif", Path("/")) == packages / "one/loud/inner/a.tif"
    assert resolve("package:spread/first.tif", Path("/")) == packages / "one/spread/first.tif"
    assert resolve("package:spread/second.tif", Path("/")) == packages / "two/spread/second.tif"
    assert "loud" not in sys.modules
    assert "spread" not in sys.modules


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("package:no_such_thing/a.tif", "no package no_such_thing is installed; install the package that holds it"),
        ("package:loud/b.tif", r"package loud is installed and holds no b.tif \(.*one/loud\); install the edition"),
        ("package:loud", "is named package:NAME/inner/path"),
        ("package:/a.tif", "is named package:NAME/inner/path"),
        ("package:a.b/a.tif", "is named package:NAME/inner/path"),
        ("package:loud/../spread/first.tif", "is named package:NAME/inner/path"),
        ("package:loud//etc/hostname", "is named package:NAME/inner/path"),
        ("package:math/a.tif", "no package math is installed"),
        ("package:__main__/a.tif", "no package __main__ is installed"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_packages_that_do_not_hold_it(text: str, match: str) -> None:
    with pytest.raises(TrainingError, match=match):
        resolve(text, Path("/"))
    with pytest.raises(TrainingError):
        expand(text, Path("/"))


@pytest.mark.usefixtures("packages")
def test_what_to_install_can_be_said() -> None:
    for text in ("package:no_such_thing/a.tif", "package:loud/b.tif"):
        with pytest.raises(TrainingError, match=r"; pip install loud==2$"):
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
    with pytest.raises(TrainingError, match=re.escape(f"no file matches *.jp2 in {packages}; check the pattern")):
        expand("*.jp2", packages)
