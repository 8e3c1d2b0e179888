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
    places: dict[str, tuple[str, ...]] = field(repr=False)
    """Where the module and the packages around it lie, by name."""

    def call(self, name: str, arguments: dict[str, Any]) -> object:
        """What the function `name` of the module returns; ModelError when it is not there or something raises."""
        with _searched(self.folders):
            self._drop_others()
            try:
                module = importlib.import_module(self.module)
            except (Exception, SystemExit) as error:
                raise ModelError(f"{self.path}: importing it raised {_told(error)}; mend the module") from error
            _ran[self.module] = self.data
            function = getattr(module, name, None)
            if not callable(function):
                raise ModelError(f"{self.path}: has no function or class {name}; mend the name behind the colon")
            try:
                return function(**arguments)
            except (Exception, SystemExit) as error:
                raise ModelError(
                    f"{self.path}: {name} raised {_told(error)}; mend [arguments] (TOML has no None: list arguments "
                    "that must be None, such as those that ask for a download, under `none`)"
                ) from error

    def _drop_others(self) -> None:
        """Forget modules of the same name from elsewhere, and this one if its file has changed since."""
        if any(_place(getattr(sys.modules.get(n), "__spec__", None)) not in ((), p) for n, p in self.places.items()):
            root = self.module.partition(".")[0]
            for name in [n for n in sys.modules if n == root or n.startswith(f"{root}.")]:
                del sys.modules[name]
        elif _ran.get(self.module, self.data) != self.data:
            sys.modules.pop(self.module, None)


def locate(module: str, folder: Path | None = None) -> Source:
    """The file of `module`, named by a file in `folder`; ModelError when there is none. The module does not run."""
    folders = [] if folder is None else [folder, *folder.parents[: module.count(".")][-1:]]
    wanted = tuple(str(f) for f in [*folders, Path.cwd()])
    for searched in ((), wanted):
        with _searched(searched):
            specs = _specs(module)
        path = Path(specs[module].origin or "") if specs else Path()
        if path.is_file():
            places = {name: _place(spec) for name, spec in specs.items()}
            return Source(module, path, read_bounded(path, MAX_TEXT), searched, places)
    raise ModelError(
        f"{module}: no such Python module, neither where Python looks nor in {', '.join(wanted)}; "
        "install it, or go where it lies"
    )


def _specs(module: str) -> dict[str, ModuleSpec]:
    """What `import` would take for `module` and the packages around it, outermost first; none of them runs.

    `importlib.util.find_spec` would run the packages, and trust what was imported before. Empty when not found.
    """
    importlib.invalidate_caches()
    first, *rest = module.split(".")
    finders = [finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec")]
    spec = next((found for find in finders if (found := find(first, None, None)) is not None), None)
    specs = {} if spec is None else {first: spec}
    name = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return {}
        # by its last name: of a whole one, Python asks the packages around it, which were not imported
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
        if spec is None:
            return {}
        name = f"{name}.{part}"
        specs[name] = spec
    return specs


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


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
