"""`train` and `evaluate`."""

from pathlib import Path
from typing import Any

import click

from fcn_batch.commands.arguments import DEVICES, comparison_options
from fcn_batch.commands.base import PATH, Command, echo_pairs, echo_path, examples


@click.command(
    cls=Command,
    epilog=examples(
        "fcn-batch train configs/models/landcover-world.toml --epochs 1",
        "fcn-batch train roofs.toml --data survey/ -o roofs.safetensors",
        "torchrun --nproc-per-node 2 -m fcn_batch train roofs.toml",
    ),
)
@click.argument("recipe", type=PATH)
@click.option(
    "--data",
    "folder",
    type=PATH,
    metavar="DIR",
    help="Folder that the recipe's paths begin at; default: the recipe's.",
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Model file to write; default: NAME.safetensors, here.")
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
    from fcn_batch.pipeline.core.recipe import read_recipe
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.learning.train import Order
    from fcn_batch.workflows.learning.train import train as run

    read = read_recipe(recipe)
    target = output or Path(f"{read.model.name}.safetensors")
    written = run(Order(read, folder or recipe.parent, target, **chosen), progress_for(quiet=quiet))
    if written is not None:
        echo_path(written)


@click.command(
    cls=Command,
    epilog=examples(
        "fcn-batch evaluate maps/scene.classes.tif truth.tif",
        "fcn-batch evaluate scene.classes.zarr survey.gpkg --field kind --value forest=1 --value water=0 -o scores/",
        "fcn-batch evaluate map.tif truth.tif --ignore 0 --map 11=1 --map 12=1 --json",
    ),
)
@click.argument("prediction", type=PATH)
@click.argument("labels", type=PATH)
@comparison_options
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def evaluate(prediction: Path, labels: Path, as_json: bool, quiet: bool, **chosen: Any) -> None:
    """Say how well the class map PREDICTION agrees with LABELS.

    PREDICTION is a map that `fcn-batch segment` wrote, or any raster of one band of class ids. LABELS is a raster of
    ids in any reference system and resolution (each pixel of PREDICTION gets the label at its centre), or polygons.
    Pixels without a label do not count; those with a label and without a prediction count as errors.
    """
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.learning.evaluate import evaluate as run
    from fcn_batch.workflows.learning.evaluate import request_for

    request = request_for(prediction, labels, **chosen)
    found = run(request, progress_for(quiet=quiet))
    click.echo(found.to_json()) if as_json else echo_pairs(found.describe())
