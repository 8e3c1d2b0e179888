"""A model file out of somebody else's weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fcn_batch.pipeline.core.errors import ModelError, OptionError, OutputError
from fcn_batch.pipeline.core.model_card import NAME
from fcn_batch.pipeline.core.scalings import Pixels
from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.convert import Facts, convert, convolutionalise
from fcn_batch.pipeline.network.foreign import recognise
from fcn_batch.pipeline.network.weights import save_model
from fcn_batch.workflows.learning.models import check_model_output

Classifier = Literal["vgg16", "alexnet", "googlenet"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert into which model file."""

    source: Path
    output: Path
    classifier: Classifier | None = None
    """The classifier to make an FCN of; None: the file holds an FCN."""
    at_once: bool = False
    """True: a PyTorch file of an FCN-8s trained at once, whose code scales the skips."""
    classes: Path | None = None
    """A text file, one class name a line."""
    name: str | None = None
    """The model's name; None: the output file's."""
    gsd_m: float = 1.0
    pixels: Pixels | None = None
    """How pixels were scaled; None: as is usual for such a network."""
    means: tuple[float, ...] | None = None
    overwrite: bool = False


def convert_file(wanted: Conversion) -> Path:
    """Write the model file and return its path.

    ModelError when the weights cannot be converted, OutputError when the output exists or cannot be written,
    OptionError when an option does not fit.
    """
    check_model_output(wanted.output, overwrite=wanted.overwrite)
    facts = Facts(_name(wanted), wanted.gsd_m, _class_names(wanted.classes), wanted.means)
    source = recognise(read_tensors(wanted.source), at_once=wanted.at_once, pixels=wanted.pixels)
    if wanted.classifier is None:
        network, card = convert(source, facts)
    else:
        if source.kind != wanted.classifier:
            raise ModelError(f"{wanted.source}: holds {source.kind}, not {wanted.classifier}; name it in the command")
        network, card = convolutionalise(source, facts)
    try:
        save_model(wanted.output, network, card)
    except OSError as error:
        raise OutputError(f"{wanted.output}: cannot write here: {error.strerror}; choose another -o FILE") from error
    return wanted.output


def _name(wanted: Conversion) -> str:
    """The name that was asked for, or one made of the file's; OptionError when it cannot be a model's."""
    made = re.sub(r"[^a-z0-9_.-]+", "-", wanted.output.stem.lower()).lstrip("_.-") or "model"
    name = made if wanted.name is None else wanted.name
    if not re.match(NAME, name):
        raise OptionError(f"--name {name!r}: give small letters, digits, '_', '.' and '-', such as fcn8s-voc")
    return name


def _class_names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "not text in UTF-8"
        raise OptionError(f"--classes {path}: {told}; give a text file with one class name a line") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise OptionError(f"--classes {path}: no names in it; give one class name a line")
    return names
