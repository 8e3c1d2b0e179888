"""Find models: those that ship with the package by name, any other by path."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from fcn_batch.pipeline.errors import ModelError
from fcn_batch.pipeline.weights import ModelFile, read_card

DEFAULT = "landcover-world"


def embedded() -> Iterator[ModelFile]:
    """The models that ship with the package, by name."""
    for path in sorted(_folder().glob("*.safetensors")):
        yield read_card(path)


def find_model(name_or_path: str) -> ModelFile:
    """The embedded model of that name, or the model file at that path; ModelError when there is none."""
    named = _folder() / f"{name_or_path}.safetensors"
    if "/" not in name_or_path and named.is_file():
        return read_card(named)
    path = Path(name_or_path)
    if path.suffix != ".safetensors" and not path.exists():
        known = ", ".join(p.stem for p in sorted(_folder().glob("*.safetensors")))
        raise ModelError(f"{name_or_path}: no embedded model has this name ({known}), and no file either")
    return read_card(path.absolute())


def _folder() -> Path:
    return Path(str(files("fcn_batch.configs"))) / "models"
