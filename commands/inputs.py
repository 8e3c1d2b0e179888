"""How it is written on the command line what of an input is taken, and how: alike for all commands that make a plan."""

from pathlib import Path

import click

from fcn_batch.commands.base import parameter
from fcn_batch.workflows.words import bands_of, box_of, nodata_of

INPUT_OPTIONS = (
    click.option("--local-only", is_flag=True, help="Refuse inputs that are not on this machine, whoever names them."),
    click.option(
        "-b",
        "--bands",
        type=parameter(bands_of),
        metavar="N|NAME,…",
        help="Raster bands, by number, from 1, or name, in the order the model wants; default: by the model's names.",
    ),
    click.option(
        "--full-scale",
        type=float,
        metavar="VALUE",
        help="Raster value that means white, when the data type is not the model's.",
    ),
    click.option(
        "--stretch",
        metavar="LOW,HIGH|P%,Q%|…",
        help="Raster values that mean black and white, in place of 0 and --full-scale: two numbers, or two for each "
        "band; percentiles of the whole raster (2%,98%); sentinel-2 (L2A since 2022); landsat (Collection 2 level 2); "
        "tags: the file's scales and offsets.",
    ),
    click.option(
        "--nodata",
        type=parameter(nodata_of),
        metavar="VALUE[,…]|none",
        help="Raster value that means no data, one for all bands or one for each; none: what the file says of it does "
        "not count; default: as the file says.",
    ),
    click.option(
        "--nodata-rule",
        type=click.Choice(["any", "all"]),
        help="Several bands with nodata values: no data where any of them has its value, or only where all have; "
        "default: all for unsigned integers, else any.",
    ),
    click.option(
        "--aoi",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Polygons (GeoJSON, GeoPackage, …): only what lies in them is computed; no data elsewhere.",
    ),
    click.option(
        "--bbox",
        type=parameter(box_of),
        metavar="W,S,E,N",
        help="Only what lies in this box, in the raster's own coordinates.",
    ),
    click.option(
        "--mpp",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MICRONS",
        help="Micrometres per pixel at which to take a slide: the level that has them, or a finer one made coarser; "
        "default: as it is.",
    ),
    click.option(
        "--level",
        type=click.IntRange(min=0),
        metavar="N",
        help="Level of the input's own pyramid; default: 0, the finest.",
    ),
    click.option(
        "--resample",
        type=click.Choice(["auto", "off"]),
        default="off",
        show_default=True,
        help="auto: bring the input to the resolution that the model was trained at; the map has it too.",
    ),
    click.option(
        "--tissue",
        type=click.Choice(["auto", "off"]),
        default="auto",
        show_default=True,
        help="auto: of a slide, what is only glass is not computed and has no data; off: all of it.",
    ),
)
