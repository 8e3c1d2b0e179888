"""`export`."""

from pathlib import Path
from typing import Any

import click

from fcn_batch.commands.base import PATH, Command, echo_path, examples
from fcn_batch.workflows.finished.targets import ENDINGS


@click.command(
    cls=Command,
    epilog=examples(
        "fcn-batch export scene.classes.zarr --to html",
        "fcn-batch export scene.run.json --to gpkg --majority 5 --min-area 1000 --simplify 1",
        "fcn-batch export scene.classes.tif --to csv --zones districts.gpkg --field name -o areas.csv",
    ),
)
@click.argument("source", metavar="MAP", type=PATH)
@click.option("--to", "target", type=click.Choice([*ENDINGS]), required=True, help="What to write.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="File (for ome-zarr: folder) to write; default: beside MAP, with the ending of what is written.",
)
@click.option(
    "--majority",
    type=int,
    metavar="N",
    help="First give each pixel the most frequent class of the N x N around it; N is odd.",
)
@click.option("--clip", type=PATH, metavar="POLYGONS", help="Leave out what is outside these polygons, last.")
@click.option(
    "--min-area",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M2",
    help="Vectors: leave out polygons of fewer square metres (of fewer pixels, where the size of a pixel is unknown).",
)
@click.option(
    "--simplify",
    type=click.FloatRange(min=0, min_open=True),
    metavar="PIXELS",
    help="Vectors: move borders by at most this many pixels to have fewer points; neighbours keep their common border.",
)
@click.option("--zones", type=PATH, metavar="REGIONS", help="csv: areas in each of these polygons.")
@click.option("--field", metavar="NAME", help="The attribute that names a zone; default: numbers.")
@click.option("--layer", metavar="NAME", help="The layer of --clip or --zones, of a file that has several.")
@click.option(
    "--grid",
    type=click.Choice(["map", "input"]),
    default="map",
    show_default=True,
    help="cog: write the map's own pixels, or those of the input, if that was resampled for the map.",
)
@click.option("--local-only", is_flag=True, help="html: leave the image out if it is not on this machine.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def export(source: Path, target: str, output: Path | None, quiet: bool, **chosen: Any) -> None:
    """Write the class map MAP in another form and print the path of what was written.

    MAP is NAME.classes.zarr, NAME.classes.tif or NAME.run.json of a run, a folder with one run.json, or any raster of
    one band of class ids. To a cloud-optimised GeoTIFF, a picture (png), a page for browsers that works offline (html),
    OME-Zarr, polygons, or a table of areas (csv).
    """
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.finished.export import Order
    from fcn_batch.workflows.finished.export import export as run

    echo_path(run(Order(source, target, output, **chosen), progress_for(quiet=quiet)))
