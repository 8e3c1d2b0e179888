"""The wheel and the source distribution hold the package and nothing else; citation, notice and dependencies agree."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fcn_batch
from fcn_batch.workflows.learning.models import embedded
from tests.lowest import pins
from tests.rasters import noise, write_raster

ROOT = Path(__file__).parents[1]
MAPPED = ("commands", "pipeline", "workflows", "configs")
"""Folders at the top of the repository that are sub-packages of fcn_batch."""
NAME = f"fcn_batch-{fcn_batch.__version__}"
"""What wheel and source distribution, and the top folder of either, begin with."""
_BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def _checkout_files() -> list[Path]:
    """Paths of the files git tracks or would track, relative to the checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"not a git checkout, so its files cannot be listed: {run.stderr.strip()}")
    return [Path(name) for name in run.stdout.split("\0") if name and (ROOT / name).exists()]


def _checkout(target: Path) -> Path:
    """A copy of the checkout's files in `target`: nothing that earlier builds left is in it."""
    for name in _checkout_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def _python(*arguments: str, cwd: Path, path: str = "") -> str:
    """Run this Python in a folder, without what is installed in its environment; return what it prints."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environ["PYTHONPATH"] = path
    command = [sys.executable, "-S", *arguments]
    run = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the checkout's files as its one commit."""
    folder = _checkout(tmp_path_factory.mktemp("repository"))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def _from_zip(repository: Path, target: Path) -> Path:
    archive = target / "forge.zip"
    subprocess.run(["git", "archive", "--prefix=x/", "-o", archive, "HEAD"], cwd=repository, check=True)
    shutil.unpack_archive(archive, target)  # as pip unpacks it: no links, no modes
    return target / "x"


def _from_tar(repository: Path, target: Path) -> Path:
    archive = target / "forge.tar"
    subprocess.run(["git", "archive", "--prefix=x/", "-o", archive, "HEAD"], cwd=repository, check=True)
    shutil.unpack_archive(archive, target, filter="data")
    return target / "x"


def _without_links(repository: Path, target: Path) -> Path:
    clone = ["git", "clone", "-q", "-c", "core.symlinks=false", str(repository), str(target / "x")]
    subprocess.run(clone, check=True, capture_output=True)
    return target / "x"


@pytest.mark.parametrize("kind", ["plain", "editable"])
@pytest.mark.parametrize("fetch", [_from_zip, _from_tar, _without_links])
def test_every_way_to_install_gives_the_whole_package(
    repository: Path, tmp_path: Path, fetch: Callable[[Path, Path], Path], kind: str
) -> None:
    source, site = fetch(repository, tmp_path), tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--target", str(site)]
    how = ["-e", str(source)] if kind == "editable" else [str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *how], cwd=tmp_path, check=True)
    libraries = sysconfig.get_path("purelib")  # without the .pth files there: those of the checkout under test
    start = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({libraries!r}); "
    code = start + "import fcn_batch.pipeline.core, fcn_batch.commands.main; print(fcn_batch.pipeline.core.__file__)"
    # from elsewhere the installed package is meant, in the root of the clone the files there
    for where, home in ((tmp_path, source if kind == "editable" else site), (source, source)):
        assert Path(_python("-c", code, cwd=where)).is_relative_to(home)
    for program in (["cli.py"], ["-m", "bench.run"], ["-m", "fcn_batch"]):
        assert "usage: " in _python(*program, "--help", cwd=source, path=f"{site}{os.pathsep}{libraries}").lower()


def test_the_list_of_packages_is_complete() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in _checkout_files() if path.name == "__init__.py" and path.parts[0] in MAPPED}
    assert set(settings["packages"]) == {"fcn_batch", *(".".join(("fcn_batch", *f.parts)) for f in folders)}
    assert settings["package-dir"] == {"fcn_batch": "fcn_batch", **{f"fcn_batch.{name}": name for name in MAPPED}}


def test_no_link_is_tracked() -> None:
    assert [path for path in _checkout_files() if (ROOT / path).is_symlink()] == []


def _build(kind: str, source: Path, target: Path) -> Path:
    """Have the backend make a `wheel` or an `sdist` of the folder `source`; nothing is fetched for it."""
    command = [sys.executable, "-c", _BUILD, kind, str(target)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", _checkout(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", _checkout(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("sdist"))


def _files(wheel: Path) -> set[str]:
    """Names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def _package() -> set[str]:
    """The importable package: all that git tracks in its folders, under the one name that leads to them."""
    files = [path for path in _checkout_files() if path.parts[0] in ("fcn_batch", *MAPPED)]
    return {f"fcn_batch/{path.as_posix().removeprefix('fcn_batch/')}" for path in files}


def _wheel_files() -> set[str]:
    """The package, and what describes it."""
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE", "licenses/NOTICE"}
    return _package() | {f"{NAME}.dist-info/{name}" for name in about}


def _sdist_files() -> set[str]:
    """The package, what the wheel is built with, and what the backend writes itself."""
    ours = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "NOTICE", "README.md", "pyproject.toml"}
    written = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt", "top_level.txt"}
    package = {str(path) for path in _checkout_files() if path.parts[0] in ("fcn_batch", *MAPPED)}
    return (
        {f"{NAME}/{name}" for name in package | ours | {"PKG-INFO", "setup.cfg"}}
        | {f"{NAME}/fcn_batch.egg-info/{name}" for name in written}
    )  # fmt: skip


def test_the_wheel_holds_exactly_the_package(wheel: Path) -> None:
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    assert _files(wheel) == _wheel_files()


def test_the_source_distribution_holds_exactly_what_the_wheel_is_made_of(sdist: Path) -> None:
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    assert {member.name for member in members} == _sdist_files()
    # links would come out as text, or not at all, on systems that have none
    assert [member.name for member in members if not member.isfile()] == []


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "wheel").mkdir()
    again = _build("wheel", tmp_path / NAME, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(again) as theirs:
        assert {(i.filename, i.CRC) for i in ours.infolist()} == {(i.filename, i.CRC) for i in theirs.infolist()}


def test_the_wheel_says_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert re.findall(r"^License-File: (.*)$", metadata, re.MULTILINE) == ["LICENSE", "NOTICE"]


def test_the_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    code = "import fcn_batch.pipeline.core.geometry as g, fcn_batch.commands.main; print(g.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path)


@pytest.mark.long
def test_an_installed_wheel_segments(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder that knows nothing of the checkout; the libraries are those of this environment."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(site))
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)

    def python(*arguments: str) -> str:
        run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    where = python("-c", "import fcn_batch.configs, fcn_batch; print(fcn_batch.__file__, fcn_batch.configs.__file__)")
    assert all(Path(path).is_relative_to(site) for path in where.split())
    assert "segment" in python("-m", "fcn_batch", "--help")
    listed = python("-m", "fcn_batch", "model", "list")
    assert all(model.card.name in listed for model in embedded())
    write_raster(work / "a.tif", noise(3, 100, 120), photometric="RGB")
    made = python("-m", "fcn_batch", "segment", "-q", "--model", "landcover-world", "a.tif", "-o", "maps")
    assert {Path(line).name for line in made.split()} >= {"a.classes.zarr", "a.classes.tif"}
    assert fcn_batch.__version__ in python(str(site / "bin" / "fcn-batch"), "--version")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def test_every_dependency_has_its_line() -> None:
    project = _project()
    extras = project["optional-dependencies"].values()
    wanted = {
        re.split(r"[^A-Za-z0-9-]", requirement)[0]
        for group in (project["dependencies"], *extras)
        for requirement in group
    }
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([A-Za-z0-9-]+)`", page, re.MULTILINE)) == wanted


def test_every_runtime_dependency_has_a_lowest_version() -> None:
    names = [re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in _project()["dependencies"]]
    assert [one.split("==")[0] for one in pins()] == names


def test_the_citation_is_of_this_version() -> None:
    fields = dict(re.findall(r"^(\S+): (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    assert fields["version"] == fcn_batch.__version__
    assert (fields["title"], fields["license"]) == (_project()["name"], _project()["license"])


def test_the_notice_names_what_the_embedded_models_are_made_of() -> None:
    flat = " ".join((ROOT / "NOTICE").read_text("utf-8").split())
    for model in embedded():
        for data in model.card.training:
            assert data.name.removesuffix(" (start of the trunk)") in flat, model.card.name
            assert data.source in flat, model.card.name
            assert f"Licence: {data.licence}" in flat, model.card.name
