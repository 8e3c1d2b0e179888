"""The wheel holds the package, all of it, and nothing else; every dependency has a reason on paper."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("commands", "pipeline", "workflows", "configs")


def _checkout_files() -> list[Path]:
    """Paths of the files git tracks or would track, relative to the checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"not a git checkout, so its files cannot be listed: {run.stderr.strip()}")
    return [Path(name) for name in run.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built, offline, from a clean copy of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in _checkout_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    run = subprocess.run(
        [*build, "--wheel-dir", target, source], capture_output=True, text=True, check=False, cwd=target
    )
    assert run.returncode == 0, run.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def _expected() -> set[str]:
    """What the checkout has to offer: modules and type marker, and the data of `configs` and `workflows`."""
    data = {"configs": {".toml", ".safetensors", ".md"}, "workflows": {".html", ".css", ".js", ".sbatch", ".pbs"}}
    files = [Path(n) for n in _checkout_files() if n.parts[0] in LINKED]
    kept = {p for p in files if p.suffix == ".py" or p.suffix in data.get(p.parts[0], ())}
    top = {"fcn_batch/__init__.py", "fcn_batch/py.typed", "fcn_batch/cli.py"}
    return top | {f"fcn_batch/{p.as_posix()}" for p in kept}


def test_an_install_adds_one_name(names: set[str]) -> None:
    top = {name.split("/")[0] for name in names}
    info = {name for name in top if name.endswith(".dist-info")}
    assert len(info) == 1
    assert top - info == {"fcn_batch"}


def test_the_wheel_holds_exactly_the_package(names: set[str]) -> None:
    assert {name for name in names if name.startswith("fcn_batch/")} == _expected()


def test_the_wheel_carries_the_licence(wheel: Path, names: set[str]) -> None:
    assert any(re.fullmatch(r"fcn_batch-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0\n" in archive.read(metadata).decode()


def test_the_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import fcn_batch.pipeline.geometry as g, fcn_batch.cli; print(g.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path)


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = {
        re.split(r"[^A-Za-z0-9-]", requirement)[0]
        for group in (project["dependencies"], *extras)
        for requirement in group
    }
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([A-Za-z0-9-]+)`", page, re.MULTILINE)) == wanted
