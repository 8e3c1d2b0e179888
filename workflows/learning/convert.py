"""A model file out of somebody else's weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fcn_batch.pipeline.core.errors import ModelError, OptionError, OutputError
from fcn_batch.pipeline.core.model_card import NAME
from fcn_batch.pipeline.core.scalings import Pixels
from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.foreign import recognise
from fcn_batch.pipeline.network.importing import Facts, convert, convolutionalise
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


def convert_file(order: Conversion) -> Path:
    """Write the model file and return its path.

    ModelError when the weights cannot be converted, OutputError when the output exists or cannot be written,
    OptionError when an option does not fit.
    """
    check_model_output(order.output, overwrite=order.overwrite)
    facts = Facts(_name(order), order.gsd_m, _class_names(order.classes), order.means)
    source = recognise(read_tensors(order.source), at_once=order.at_once, pixels=order.pixels)
    if order.classifier not in (None, source.kind):
        raise ModelError(
            "classifier-other",
            "{path}: holds {kind}, not {classifier}; name it in the command",
            path=order.source,
            kind=source.kind,
            classifier=order.classifier,
        )
    network, card = convert(source, facts) if order.classifier is None else convolutionalise(source, facts)
    try:
        save_model(order.output, network, card)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path}: cannot write here: {reason}; choose another -o FILE",
            path=order.output,
            reason=error.strerror,
        ) from error
    return order.output


def _name(order: Conversion) -> str:
    """Return the name that was asked for, or one made of the file's; OptionError when it cannot be a model's."""
    made = re.sub(r"[^a-z0-9_.-]+", "-", order.output.stem.lower()).lstrip("_.-") or "model"
    name = made if order.name is None else order.name
    if not re.match(NAME, name):
        raise OptionError(
            "name-invalid",
            "--name {value!r}: give small letters, digits, '_', '.' and '-', such as fcn8s-voc",
            value=name,
        )
    return name


def _class_names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            "class-names-unreadable",
            "--classes {path}: {reason}; give a text file with one class name a line",
            path=path,
            reason=getattr(error, "strerror", None) or "not text in UTF-8",
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise OptionError(
            "class-names-empty", "--classes {path}: no names in it; give one class name a line", path=path
        )
    return names
