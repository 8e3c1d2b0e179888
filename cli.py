"""The command line: parse, call one workflow, print paths on stdout, map errors to exit codes.

Everything heavy is imported inside the commands, so that `fcn-batch --help` answers at once.
"""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fcn_batch
from fcn_batch.pipeline.errors import FcnBatchError
from fcn_batch.workflows.arguments import DEVICES, comparison_options, conversion_options, model_options

if TYPE_CHECKING:
    from fcn_batch.workflows.plan import Options

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Command(click.Command):
    """A command with `--debug`, whose errors are one line and an exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        show = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.", expose_value=False)
        show.callback = lambda ctx, _, value: ctx.meta.update(debug=value)
        self.params.append(show)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; turn errors into messages unless `--debug` was given."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise  # click's own; of a closed pipe it makes a quiet end
        except KeyboardInterrupt:
            click.echo("fcn-batch: interrupted; run the same command again to go on", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - the last resort: a bug, told in one line
            if ctx.meta["debug"]:
                traceback.print_exc()
            message, code = f"unforeseen error: {type(error).__name__}: {error}; --debug shows where", 1
            if isinstance(error, FcnBatchError):
                message, code = str(error), error.exit_code
            click.echo(f"fcn-batch: {message}", err=True)
            ctx.exit(code)


class _Group(click.Group):
    command_class = _Command


_Group.group_class = _Group
_PATH = click.Path(path_type=Path)


def _options(chosen: dict[str, Any]) -> "Options":
    from fcn_batch.workflows.plan import Options

    return Options(**chosen)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fcn_batch.__version__, prog_name="fcn-batch")
def main() -> None:
    """Turn rasters of any size into georeferenced class maps, exactly and restartably."""


@main.command(
    epilog="""\b
Examples:
  fcn-batch segment big_image.tif
  fcn-batch segment scene.tif --bands 3,2,1 -o maps/
  fcn-batch segment a.tif b.tif -m my_model.safetensors -o maps/ --workers 4"""
)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=_PATH)
@click.option(
    "-o",
    "--output",
    "folder",
    type=_PATH,
    metavar="DIR",
    help="Folder for the outputs, made if missing; default: beside each input.",
)
@model_options
@click.option(
    "-w",
    "--workers",
    default=0,
    show_default=True,
    metavar="N",
    help="Run on N processes of this machine; 0: in this process.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Run on the Dask scheduler at tcp://HOST:PORT.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--restart", is_flag=True, help="Discard an interrupted run instead of going on with it.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; errors only.")
def segment(
    inputs: tuple[Path, ...],
    folder: Path | None,
    workers: int,
    scheduler: str | None,
    overwrite: bool,
    restart: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Make the class map of each INPUT.

    Writes NAME.classes.zarr (for xarray and GIS), NAME.classes.tif (cloud-optimised GeoTIFF with colours and
    names) and, last, NAME.run.json; its presence means that all is complete. Prints these paths. An interrupted
    run goes on where it stopped when the same command is given again.
    """
    from fcn_batch.workflows.execute import Workers
    from fcn_batch.workflows.progress import progress_for
    from fcn_batch.workflows.segment import Request
    from fcn_batch.workflows.segment import segment as run

    request = Request(inputs, _options(chosen), folder, Workers(workers, scheduler), overwrite, restart)
    for path in run(request, progress_for(quiet=quiet)):
        click.echo(path)


@main.command(
    epilog="""\b
Example:
  fcn-batch plan big_image.tif --tile 512"""
)
@click.argument("path", metavar="INPUT", type=_PATH)
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(path: Path, as_json: bool, **chosen: Any) -> None:
    """Show how INPUT would be cut, what it would cost and need, without running anything."""
    from fcn_batch.workflows.plan import describe, prepare

    prepared = prepare(path, _options(chosen))
    if as_json:
        click.echo(prepared.plan.model_dump_json(indent=2))
        return
    _echo_pairs(describe(prepared))


def _echo_pairs(pairs: "list[tuple[str, str]]") -> None:
    for label, value in pairs:
        click.echo(f"{label:<12} {value}")


@main.group()
def model() -> None:
    """List, describe and check models."""


def _examples(*calls: str) -> str:
    return "\n  ".join([f"\b\nExample{'s'[: len(calls) - 1]}:", *(f"fcn-batch model {call}" for call in calls)])


@model.command("list", epilog=_examples("list"))
def model_list() -> None:
    """List the models that ship with fcn-batch."""
    from fcn_batch.workflows.models import embedded

    for file in embedded():
        click.echo(f"{file.card.name:<20} {file.card.summary}")


@model.command("info", epilog=_examples("info landcover-world", "info my_model.safetensors --json"))
@click.argument("name", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print the whole card as JSON.")
def model_info(name: str, as_json: bool) -> None:
    """Show the card of a model: what it wants, which classes it knows, how well it does."""
    from fcn_batch.workflows.models import describe_model, find_model

    file = find_model(name)
    click.echo(file.card.model_dump_json(indent=2)) if as_json else _echo_pairs(describe_model(file))


@model.command("check", epilog=_examples("check landcover-world", "check my_package.nets:make_unet --json"))
@click.argument("name", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def model_check(name: str, as_json: bool) -> None:
    """Find out by trying how far a model looks, and whether tiles give exactly the scores of the whole image."""
    from fcn_batch.workflows.models import check_model, describe_check

    check = check_model(name)
    click.echo(check.to_json()) if as_json else _echo_pairs(describe_check(check))


@model.command("convert", epilog=_examples("convert fcn8s-heavy-pascal.caffemodel -o fcn8s.safetensors"))
@click.argument("source", metavar="FILE", type=_PATH)
@click.option("--at-once", is_flag=True, help="A .pth file of an FCN-8s trained at once: scale its skips.")
@conversion_options
def model_convert(**chosen: Any) -> None:
    """Turn an FCN of others into a model file and print its path.

    FILE is a .caffemodel of the FCN authors, its PyTorch form (pytorch-fcn) or a training checkpoint of that, or
    torchvision's fcn_resnet50 or fcn_resnet101. No code in it is run.
    """
    from fcn_batch.workflows.convert import Conversion, convert_file

    click.echo(convert_file(Conversion(**chosen)))


@model.command("convolutionalise", epilog=_examples("convolutionalise vgg16 vgg16-397923af.pth -o vgg.safetensors"))
@click.argument("classifier", type=click.Choice(["vgg16", "alexnet", "googlenet"]))
@click.argument("source", metavar="WEIGHTS", type=_PATH)
@conversion_options
def model_convolutionalise(**chosen: Any) -> None:
    """Turn an image classifier into a model file that classifies around every 32nd pixel; print its path."""
    from fcn_batch.workflows.convert import Conversion, convert_file

    click.echo(convert_file(Conversion(**chosen)))


@main.command(
    epilog="""\b
Examples:
  fcn-batch train configs/models/landcover-world.toml --epochs 1
  fcn-batch train roofs.toml --data survey/ -o roofs.safetensors
  torchrun --nproc-per-node 2 -m fcn_batch.cli train roofs.toml"""
)
@click.argument("recipe", type=_PATH)
@click.option(
    "--data",
    "folder",
    type=_PATH,
    metavar="DIR",
    help="Folder that the recipe's paths begin at; default: the recipe's.",
)
@click.option(
    "-o", "--output", type=_PATH, metavar="FILE", help="Model file to write; default: NAME.safetensors, here."
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="So many times the pixels of the training images, for each stage, instead of the recipe's steps.",
)
@click.option("--device", default="auto", show_default=True, metavar=DEVICES, help="Where to train.")
@click.option("--overwrite", is_flag=True, help="Replace the model file if it exists.")
@click.option("--restart", is_flag=True, help="Discard an interrupted training instead of going on with it.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def train(recipe: Path, folder: Path | None, output: Path | None, quiet: bool, **chosen: Any) -> None:
    """Train a model as RECIPE (a TOML file) says and print the path of the model file.

    Curves, pictures of predictions, metrics.json and, while it runs, a checkpoint are in NAME.training/ beside it.
    An interrupted training goes on where it stopped when the same command is given again.
    """
    from fcn_batch.pipeline.recipe import read_recipe
    from fcn_batch.workflows.progress import progress_for
    from fcn_batch.workflows.train import Order
    from fcn_batch.workflows.train import train as run

    read = read_recipe(recipe)
    target = output or Path(f"{read.model.name}.safetensors")
    written = run(Order(read, folder or recipe.parent, target, **chosen), progress_for(quiet=quiet))
    if written is not None:
        click.echo(written)


@main.command(
    epilog="""\b
Examples:
  fcn-batch evaluate maps/scene.classes.tif truth.tif
  fcn-batch evaluate maps/scene.classes.zarr survey.gpkg --field kind --value forest=1 --value water=0 -o scores/
  fcn-batch evaluate map.tif truth.tif --ignore 0 --map 11=1 --map 12=1 --json"""
)
@click.argument("prediction", type=_PATH)
@click.argument("labels", type=_PATH)
@comparison_options
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def evaluate(prediction: Path, labels: Path, as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Say how well the class map PREDICTION agrees with LABELS.

    PREDICTION is a map that `fcn-batch segment` wrote, or any raster of one band of class ids. LABELS is a raster of
    ids in any reference system and resolution (each pixel of PREDICTION gets the label at its centre), or polygons.
    Pixels without a label do not count; those with a label and without a prediction count as errors.
    """
    from fcn_batch.workflows.evaluate import evaluate as run
    from fcn_batch.workflows.evaluate import request_for
    from fcn_batch.workflows.progress import progress_for

    request = request_for(prediction, labels, **chosen)
    found = run(request, progress_for(quiet=quiet))
    click.echo(found.to_json()) if as_json else _echo_pairs(found.describe())


if __name__ == "__main__":
    main()
