"""How the options that decide the plan are written on the command line: the same for every command that makes one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from fcn_batch.commands.base import parameter
from fcn_batch.commands.completion import complete_models
from fcn_batch.commands.inputs import INPUT_OPTIONS
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.tiling import Blend
from fcn_batch.pipeline.core.units import bytes_of


def _all(options: tuple[Any, ...]) -> Callable[[Any], Any]:
    """A decorator that gives a command all of `options`."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@parameter
def _auto_or_pixels(text: str) -> int | None:
    """``auto`` to None, anything else to a whole number."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise OptionError("number-invalid", "{value!r} is neither auto nor a number of pixels", value=text) from None


DEVICES = "auto|cpu|cuda[:N]|mps"


MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        default="auto",
        show_default=True,
        metavar="auto|NAME|FILE",
        shell_complete=complete_models,
        help="auto: the embedded model that was trained on such images. Or its name (`fcn-batch model list`), a "
        ".safetensors or .toml file, or package.module:factory.",
    ),
    *INPUT_OPTIONS,
    click.option(
        "--tile",
        type=_auto_or_pixels,
        metavar="auto|PIXELS",
        default="auto",
        show_default=True,
        help="auto: stream row by row. A number: exact tiles of this side instead.",
    ),
    click.option(
        "--overlap",
        type=_auto_or_pixels,
        metavar="auto|PIXELS",
        default="auto",
        show_default=True,
        help="auto: the model's halo, exact. A number: tiles overlap by it and are blended.",
    ),
    click.option(
        "--blend",
        type=click.Choice(get_args(Blend)),
        help="Weights of overlapping tiles, when --overlap is a number; default: hann.",
    ),
    click.option(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of the network in each process; default: one for each core, shared among --workers.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        callback=lambda _ctx, _option, value: None if value == "auto" else value,
        help="auto: bf16 where it is fast and the model's card says that it changes few classes, else fp32.",
    ),
    click.option(
        "--memory",
        type=parameter(bytes_of),
        metavar="SIZE",
        help="Memory for each process, such as 4GB; default: half of what is free, or of a cluster's jobs.",
    ),
    click.option("--device", default="auto", show_default=True, metavar=DEVICES, help="Where the network runs."),
    click.option("--confidence", is_flag=True, help="Also make NAME.confidence.zarr: how sure the network is."),
    click.option(
        "--shard",
        type=int,
        metavar="PIXELS",
        help="Side of the zarr store's files, a multiple of the chunk of 2048. Fewer files, but GDAL before 3.13 "
        "cannot read them.",
    ),
    click.option(
        "--verify-input",
        is_flag=True,
        help="Know INPUT by its SHA-256 instead of its time, compare it with INPUT.sha256 or SHA256SUMS beside it, and "
        "read it again at the end.",
    ),
)
"""What decides the plan, beside the input: the same for `segment` and `plan`."""


model_options = _all(MODEL_OPTIONS)


@parameter
def _id_pair(text: str) -> tuple[int, int]:
    """``7=2`` to (7, 2)."""
    try:
        source, target = (int(part) for part in text.split("="))
    except ValueError:
        raise OptionError("pair-invalid", "{value!r} is not a pair of ids like 7=2", value=text) from None
    return source, target


@parameter
def _name_and_id(text: str) -> tuple[str, int]:
    """``forest=2`` to ("forest", 2); names may hold an equals sign."""
    name, _, number = text.rpartition("=")
    try:
        return name, int(number)
    except ValueError:
        raise OptionError("pair-invalid", "{value!r} is not a value and an id like forest=2", value=text) from None


POLYGON_OPTIONS = (
    click.option("--field", metavar="NAME", help="Polygons: the attribute that says what each one is."),
    click.option(
        "--value",
        "values",
        type=_name_and_id,
        multiple=True,
        metavar="VALUE=ID",
        help="Polygons: the id that a value of --field stands for (repeat for each); -1: no label.",
    ),
    click.option("--burn", type=int, metavar="ID", help="Polygons without --field: the id inside; default: 1."),
    click.option(
        "--background",
        type=int,
        metavar="ID",
        help="Polygons: the id outside; -1: no label there; default: 0.",
    ),
    click.option("--layer", metavar="NAME", help="Polygons: the layer of a file that has several."),
)
"""What label polygons mean."""


COMPARISON_OPTIONS = (
    click.option(
        "--ignore", type=int, multiple=True, metavar="ID", help="Label id to leave out (repeat), beside 255 and nodata."
    ),
    click.option(
        "--map",
        "renamed",
        type=_id_pair,
        multiple=True,
        metavar="FROM=TO",
        help="Label id FROM stands for class TO of PREDICTION (repeat for each).",
    ),
    *POLYGON_OPTIONS,
    click.option(
        "--boundary",
        type=_auto_or_pixels,
        metavar="auto|PIXELS",
        default="auto",
        show_default=True,
        help="Distance of boundary IU. auto: 2 % of the diagonal, at most 16; 0: leave it out.",
    ),
    click.option(
        "-o",
        "--output",
        "folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Also write metrics.json, confusion.csv and confusion.png there.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace these files if they exist."),
)
"""How a map is compared with labels, and where the result goes."""


comparison_options = _all(COMPARISON_OPTIONS)


@parameter
def _means(text: str) -> tuple[float, ...]:
    """``122.7,116.7,104`` to three numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            "number-invalid", "{value!r} is no list of numbers like 122.7,116.7,104", value=text
        ) from None


CONVERSION_OPTIONS = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        required=True,
        metavar="FILE",
        help="Model file to write, .safetensors.",
    ),
    click.option(
        "--classes",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Names of the classes, one a line; default: PASCAL VOC's or ImageNet's, where their number fits.",
    ),
    click.option("--name", metavar="NAME", help="The model's name; default: the output file's."),
    click.option(
        "--gsd",
        "gsd_m",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        metavar="METRES",
        help="Size of a pixel that it was trained at.",
    ),
    click.option(
        "--pixels",
        type=click.Choice(["imagenet", "caffe", "caffe-rgb", "half", "tensorflow"]),
        help="How pixels were scaled in training, if not as usual for such a network.",
    ),
    click.option(
        "--means",
        type=_means,
        metavar="R,G,B",
        help="Mean of each band in training, of values from 0 to 255, if not as published.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the model file if it exists."),
)
"""How weights become a model file."""


conversion_options = _all(CONVERSION_OPTIONS)
