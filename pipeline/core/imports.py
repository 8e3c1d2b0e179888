"""Python modules of users: found by name, hashed before they run, imported from where they were found.

A module is looked for as `import` would; when that fails, also in the folder of the file that names it, in the folder
above its package there, and in the current directory. Those are on the search path only while a module of
theirs is imported or called, so two models whose modules have one name do not meet.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded

_ran: dict[str, bytes] = {}
"""Source of each module imported here, by name: a worker that lives long must notice when it changes."""


@dataclass(frozen=True, slots=True)
class Source:
    """A module that was found but has not run."""

    module: str
    path: Path
    """Its file."""
    data: bytes = field(repr=False)
    """What the file holds."""
    folders: tuple[str, ...]
    """Searched beside Python's own search path."""
    root: tuple[str, ...] = field(repr=False)
    """Where the package, or module, of its first name lies."""

    def call(self, name: str, arguments: dict[str, Any]) -> object:
        """What the function `name` of the module returns; ModelError when it is not there or something raises."""
        with _searched(self.folders):
            self._drop_others()
            try:
                module = importlib.import_module(self.module)
            except (Exception, SystemExit) as error:
                raise ModelError(
                    "module-fails",
                    "{path}: importing it raised {problem}; correct the module",
                    path=self.path,
                    problem=_in_words(error),
                ) from error
            _ran[self.module] = self.data
            function = getattr(module, name, None)
            if not callable(function):
                raise ModelError(
                    "factory-missing",
                    "{path}: has no function or class {name}; correct the name behind the colon",
                    path=self.path,
                    name=name,
                )
            try:
                return function(**arguments)
            except (Exception, SystemExit) as error:
                raise ModelError(
                    "factory-fails",
                    "{path}: {name} raised {problem}; correct [arguments] (TOML has no None: list arguments that must "
                    "be None, such as those that ask for a download, under `none`)",
                    path=self.path,
                    name=name,
                    problem=_in_words(error),
                ) from error

    def _drop_others(self) -> None:
        """Forget modules of the same name from elsewhere, and this one if its file has changed since."""
        root = self.module.partition(".")[0]
        if _place(getattr(sys.modules.get(root), "__spec__", None)) not in ((), self.root):
            for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
                del sys.modules[name]
        elif _ran.get(self.module, self.data) != self.data:
            sys.modules.pop(self.module, None)


def locate(module: str, folder: Path | None = None) -> Source:
    """The file of `module`, named by a file in `folder`; ModelError when there is none. The module does not run."""
    folders = [] if folder is None else [folder, *folder.parents[: module.count(".")][-1:]]
    others = tuple(str(f) for f in [*folders, Path.cwd()])
    for searched in ((), others):
        with _searched(searched):
            root, spec = _specs(module)
        path = Path(spec.origin or "") if spec is not None else Path()
        if path.is_file():
            return Source(module, path, read_bounded(path, MAX_TEXT), searched, _place(root))
    raise ModelError(
        "module-missing",
        "{module}: no such Python module, neither where Python looks nor in {folders}; install it, or go where it lies",
        module=module,
        folders=", ".join(others),
    )


def _specs(module: str) -> tuple[ModuleSpec | None, ModuleSpec | None]:
    """Return the specs that `import` would find for the first name of `module` and for all of it; neither runs.

    `importlib.util.find_spec` would run the packages around it, and trust what was imported before.
    """
    importlib.invalidate_caches()
    first, *rest = module.split(".")
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    root = spec = next((found for find in finders if (found := find(first, None, None)) is not None), None)
    for part in rest:
        inside = None if spec is None else spec.submodule_search_locations
        # by its last name: of a whole one, Python asks the packages around it, which were not imported
        spec = None if inside is None else PathFinder.find_spec(part, list(inside))
    return root, spec


def _place(spec: ModuleSpec | None) -> tuple[str, ...]:
    """The file of a module, or the folders of a package without one; empty when there is no module."""
    if spec is None:
        return ()
    return (spec.origin,) if spec.origin else tuple(spec.submodule_search_locations or ())


@contextmanager
def _searched(folders: tuple[str, ...]) -> Iterator[None]:
    """Search `folders` too, after all others."""
    before = list(sys.path)
    sys.path.extend(folders)
    try:
        yield
    finally:
        sys.path[:] = before


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
