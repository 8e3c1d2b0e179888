"""How the options that decide the plan are written on the command line: the same for every command that makes one."""

import math
import re
from typing import Any

import click


def _numbers(text: str) -> tuple[int, ...]:
    """``3,2,1`` to (3, 2, 1)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers like 3,2,1") from None


def _auto_or_pixels(text: str) -> int | None:
    """``auto`` to None, anything else to a whole number."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a number of pixels") from None


def _bytes(text: str) -> int:
    """``4GB``, ``500MiB`` or ``4e9`` to a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    count = 0.0
    if found is not None:
        unit = 1024 if found[3] else 1000
        count = float(found[1]) * unit ** ("kmgt".find(found[2].lower()) + 1 if found[2] else 0)
    if not 1 <= count < math.inf:
        raise click.BadParameter(f"{text!r} is not an amount of memory like 4GB or 500MB")
    return int(count)


DEVICES = "auto|cpu|cuda[:N]|mps"


MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        default="landcover-world",
        show_default=True,
        metavar="NAME|FILE",
        help="An embedded model (see `fcn-batch model list`), a .safetensors or .toml file, or package.module:factory.",
    ),
    click.option(
        "-b",
        "--bands",
        type=_numbers,
        metavar="N,N,…",
        help="Raster bands, from 1, in the order the model wants; default: by name.",
    ),
    click.option(
        "--full-scale",
        type=float,
        metavar="VALUE",
        help="Raster value that means white, when the data type is not the model's.",
    ),
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
        type=click.Choice(["hann", "linear", "gaussian", "none"]),
        help="Weights of overlapping tiles, when --overlap is a number; default: hann.",
    ),
    click.option(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of the network in each process; default: all CPUs, shared among --workers.",
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
        type=_bytes,
        metavar="SIZE",
        help="Memory for each process, such as 4GB; default: half of what is free.",
    ),
    click.option("--device", default="auto", show_default=True, metavar=DEVICES, help="Where the network runs."),
)
"""What decides the plan, beside the input: the same for `segment` and `plan`."""


def model_options(command: Any) -> Any:
    """Give `command` all of them."""
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command
