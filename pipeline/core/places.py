"""Where a data set's files are: plain paths, files inside installed packages, patterns.

``package:NAME/inner/path`` is a file that an installed Python package brings along; the package is not imported.
"""

import importlib.util
from pathlib import Path

from fcn_batch.pipeline.core.errors import TrainingError

_PACKAGE = "package:"


def resolve(text: str, folder: Path, hint: str | None = None) -> Path:
    """The file that `text` names: a path relative to `folder`, or ``package:NAME/inner/path``.

    `hint` says how to get what is missing, such as a command that installs the package.
    TrainingError names the file, and the package, when there is no such file.
    """
    if text.startswith(_PACKAGE):
        return _in_package(text, hint)
    path = folder / text
    if not path.is_file():
        problem = "is a folder; name a file in it" if path.is_dir() else "does not exist"
        raise TrainingError(f"{path} {problem}; {hint or 'check the name, and the folder it is relative to'}")
    return path


def expand(pattern: str, folder: Path) -> list[Path]:
    """The files that match a pattern (``images/*.tif``, ``**/*.png``), sorted; the pattern may be a plain name.

    ``package:NAME/inner/pattern`` looks in an installed package. TrainingError when nothing matches.
    """
    if pattern.startswith(_PACKAGE):
        name, inner = _parts(pattern)
        found = [path for place in _package_folders(name, pattern, None) for path in _matching(place, inner)]
    else:
        found = _matching(folder, pattern)
    if not found:
        raise TrainingError(f"no file matches {pattern} in {folder}; check the pattern, and the folder")
    return sorted({*found})


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, or below the root for a pattern that begins there."""
    if Path(pattern).is_absolute():
        folder = Path(Path(pattern).anchor)
        pattern = str(Path(pattern).relative_to(folder))
    return [path for path in folder.glob(pattern) if path.is_file()] if pattern else []


def _in_package(text: str, hint: str | None) -> Path:
    """The file inside an installed package; one name may stand for several folders (namespace packages)."""
    name, inner = _parts(text)
    folders = _package_folders(name, text, hint)
    for folder in folders:
        if (folder / inner).is_file():
            return folder / inner
    places = ", ".join(str(folder) for folder in folders)
    raise TrainingError(
        f"{text}: the package {name} is installed and holds no {inner} ({places}); "
        f"{hint or 'install the edition, or the further package, that holds it'}"
    )


def _parts(text: str) -> tuple[str, str]:
    """Name of the package and path in it; TrainingError when one is missing or the path leads out."""
    name, _, inner = text.removeprefix(_PACKAGE).partition("/")
    if not (name.isidentifier() and inner) or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise TrainingError(f"{text}: a file in a package is named package:NAME/inner/path, without dots in NAME")
    return name, inner


def _package_folders(name: str, text: str, hint: str | None) -> list[Path]:
    """All folders of a package; nothing of it is imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that says nothing of where it came from
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if not folders:
        raise TrainingError(f"{text}: no package {name} is installed; {hint or 'install the package that holds it'}")
    return folders
