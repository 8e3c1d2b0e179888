"""`model list|info|check|convert|convolutionalise`."""

from typing import Any

import click

from fcn_batch.commands.arguments import conversion_options
from fcn_batch.commands.base import PATH, Group, echo_pairs, echo_path, examples
from fcn_batch.commands.completion import complete_models


@click.group(cls=Group)
def model() -> None:
    """List, describe and check models."""


@model.command("list", epilog=examples("fcn-batch model list", "fcn-batch model list --json"))
@click.option("--json", "as_json", is_flag=True, help="Print name, version, summary, file and SHA-256 of each as JSON.")
def model_list(as_json: bool) -> None:
    """List the models that ship with fcn-batch."""
    from fcn_batch.workflows.learning.models import embedded, list_json

    models = list(embedded())
    if as_json:
        click.echo(list_json(models))
        return
    for file in models:
        click.echo(f"{file.card.name:<20} {file.card.summary}")


@model.command(
    "info", epilog=examples("fcn-batch model info landcover-world", "fcn-batch model info my_model.safetensors --json")
)
@click.argument("name", metavar="NAME|FILE", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print the whole card as JSON, and its file and SHA-256.")
def model_info(name: str, as_json: bool) -> None:
    """Show the card of a model: what it wants, which classes it knows, how well it does."""
    from fcn_batch.workflows.learning.models import describe_model, find_model, model_json

    file = find_model(name)
    click.echo(model_json(file)) if as_json else echo_pairs(describe_model(file))


@model.command(
    "check",
    epilog=examples("fcn-batch model check landcover-world", "fcn-batch model check my_package.nets:make_unet --json"),
)
@click.argument("name", metavar="NAME|FILE", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def model_check(name: str, as_json: bool) -> None:
    """Find out by trying how far a model looks, and whether tiles give exactly the scores of the whole image."""
    from fcn_batch.workflows.learning.models import check_model, describe_check

    check = check_model(name)
    click.echo(check.to_json()) if as_json else echo_pairs(describe_check(check))


@model.command("convert", epilog=examples("fcn-batch model convert fcn8s-heavy-pascal.caffemodel -o fcn8s.safetensors"))
@click.argument("source", metavar="FILE", type=PATH)
@click.option("--at-once", is_flag=True, help="A .pth file of an FCN-8s trained at once: scale its skips.")
@conversion_options
def model_convert(**chosen: Any) -> None:
    """Turn an FCN of others into a model file and print its path.

    FILE is a .caffemodel of the FCN authors, its PyTorch form (pytorch-fcn) or a training checkpoint of that, or
    torchvision's fcn_resnet50 or fcn_resnet101. No code in it is run.
    """
    from fcn_batch.workflows.learning.convert import Conversion, convert_file

    echo_path(convert_file(Conversion(**chosen)))


@model.command(
    "convolutionalise", epilog=examples("fcn-batch model convolutionalise vgg16 vgg16-397923af.pth -o vgg.safetensors")
)
@click.argument("classifier", type=click.Choice(["vgg16", "alexnet", "googlenet"]))
@click.argument("source", metavar="WEIGHTS", type=PATH)
@conversion_options
def model_convolutionalise(**chosen: Any) -> None:
    """Turn an image classifier into a model file that classifies around every 32nd pixel; print its path."""
    from fcn_batch.workflows.learning.convert import Conversion, convert_file

    echo_path(convert_file(Conversion(**chosen)))
