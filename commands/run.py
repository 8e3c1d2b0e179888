"""`segment`, and what looks at a run before or after it: `plan`, `validate`, `verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcn_batch.commands.arguments import model_options
from fcn_batch.commands.base import PATH, Command, echo_pairs, echo_path, examples
from fcn_batch.commands.completion import complete_files, complete_folders

if TYPE_CHECKING:
    from fcn_batch.workflows.plan import Options


def _options(chosen: dict[str, Any]) -> "Options":
    from fcn_batch.workflows.plan import Options

    return Options(**chosen)


@click.command(
    cls=Command,
    epilog=examples(
        "fcn-batch segment big_image.tif",
        "fcn-batch segment scene.tif --bands 3,2,1 -o maps/",
        "fcn-batch segment 'in/*.tif' -m my_model.safetensors -o maps/ --workers 4",
        "fcn-batch segment slide.svs -m nuclei --mpp 0.5",
        "fcn-batch segment 'tiles/*.tif' --mosaic city -o maps/",
        "fcn-batch segment --watch incoming/ -o maps/ --summary maps/summary.json",
    ),
)
@click.argument("inputs", metavar="INPUT...", nargs=-1, shell_complete=complete_files)
@click.option(
    "--list", "listed", type=PATH, metavar="FILE", help="More inputs: a path on each line; -: standard input."
)
@click.option(
    "--mosaic",
    metavar="NAME",
    help="Make one map, NAME, of all inputs, on the grid of the first; others are warped to it where they must be.",
)
@click.option(
    "--priority",
    type=click.Choice(["order", "date"]),
    default="order",
    show_default=True,
    help="Which input of a mosaic lies on top: the one named first, or the one taken last.",
)
@click.option("--asset", metavar="KEY", help="Which asset of STAC items is the input; default: the only image.")
@click.option(
    "--watch",
    type=PATH,
    metavar="DIR",
    help="Instead of inputs: every raster that comes into this folder, until Ctrl-C or SIGTERM; needs -o.",
)
@click.option("--summary", type=PATH, metavar="FILE", help="Write how each input ended as JSON, after each of them.")
@click.option(
    "-o",
    "--output",
    "output",
    metavar="DIR|URL",
    shell_complete=complete_folders,
    help="Folder for the outputs, made if missing; default: beside each input. Or s3://BUCKET/PREFIX, gs://….",
)
@click.option(
    "--work",
    type=PATH,
    metavar="DIR",
    help="Folder in which outputs for a bucket are made before they go there; default: the working folder.",
)
@model_options
@click.option(
    "-w",
    "--workers",
    default="0",
    show_default=True,
    metavar="N|auto",
    help="Run on N processes of this machine; auto: one for every four cores; 0: in this process.",
)
@click.option(
    "--cluster",
    metavar="NAME|FILE",
    help="Run on jobs of slurm or pbs, on this machine's GPUs (cuda), or as a .toml file says; N of them with "
    "--workers N.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on the Dask scheduler at tcp:// or tls://HOST:PORT, or that of file:PATH, which it writes itself.",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Do this share of the blocks only, as one job of an array; the part that ends last makes the outputs.",
)
@click.option("--tls-ca", type=PATH, metavar="FILE", help="Certificate of the authority, for tls:// (PEM).")
@click.option("--tls-cert", type=PATH, metavar="FILE", help="This side's certificate, for tls:// (PEM).")
@click.option("--tls-key", type=PATH, metavar="FILE", help="This side's key, for tls:// (PEM).")
@click.option("--insecure", is_flag=True, help="Allow tcp:// to other machines: whoever reaches it can run programs.")
@click.option("--pyramid", is_flag=True, help="Also make NAME.pyramid.zarr: the map at ever coarser levels.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--restart", is_flag=True, help="Discard an interrupted run instead of going on with it.")
@click.option(
    "--on-error",
    default="fail",
    show_default=True,
    metavar="fail|mask|retry[:N]",
    help="What cannot be read of an input: fail: stop. mask: no data there, listed in run.json, exit code 3. retry:N: "
    "try N times more, with longer and longer waits, before that (retry:5,mask).",
)
@click.option(
    "--allow-mixed",
    is_flag=True,
    help="Go on with what another kind of device, or other versions, began: the same classes but at ties.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to finish the blocks under way after SIGTERM, SIGUSR1 or SIGHUP; then exit code 75.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; errors only.")
def segment(
    inputs: tuple[str, ...],
    listed: Path | None,
    mosaic: str | None,
    priority: Any,
    asset: str | None,
    watch: Path | None,
    summary: Path | None,
    output: str | None,
    work: Path | None,
    workers: str,
    cluster: str | None,
    scheduler: str | None,
    part: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    pyramid: bool,
    overwrite: bool,
    restart: bool,
    on_error: str,
    allow_mixed: bool,
    grace: float,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Make the class map of each INPUT.

    Writes NAME.classes.zarr (for xarray and GIS), NAME.classes.tif (cloud-optimised GeoTIFF with colours and
    names), a QGIS style and a STAC item for both and, last, NAME.run.json; its presence means that all is complete.
    Prints the paths of maps and report. An interrupted run goes on where it stopped when the same command is given
    again; given twice at once, both share the work. Ctrl-C finishes the blocks under way, a second one stops at once.

    INPUT may be a folder of rasters, a pattern such as 'in/**/*.tif', or a file of STAC items. Of many inputs one that
    fails does not stop the others; a table at the end tells how each ended, and the exit code is that of the first
    that failed.
    """
    from fcn_batch.pipeline.core.tolerance import OnError
    from fcn_batch.workflows.blocks.part import Part
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.inputs.many import dated_inputs, inputs_or_mosaic, refuse_remote
    from fcn_batch.workflows.outputs.upload import destination
    from fcn_batch.workflows.processes.clusters import read_cluster
    from fcn_batch.workflows.processes.topology import count_of
    from fcn_batch.workflows.processes.workers import Tls, Workers
    from fcn_batch.workflows.segment import Request
    from fcn_batch.workflows.segment import segment as run

    jobs = None if cluster is None else read_cluster(cluster)
    folder, bucket = destination(output, work, local_only=chosen["local_only"])
    found = dated_inputs(inputs, listed, asset) if inputs or listed or not watch else {}
    refuse_remote(found, local_only=chosen.pop("local_only"))

    request = Request(
        inputs_or_mosaic(mosaic, priority, found),
        _options(chosen),
        folder,
        Workers(count_of(workers), scheduler, Tls.given(tls_ca, tls_cert, tls_key), insecure=insecure, cluster=jobs),
        overwrite=overwrite,
        restart=restart,
        pyramid=pyramid,
        on_error=OnError.parse(on_error),
        allow_mixed=allow_mixed,
        grace=grace,
        part=None if part is None else Part.parse(part),
        summary=summary,
        watch=watch,
        bucket=bucket,
    )
    for path in run(request, progress_for(quiet=quiet)):
        echo_path(path)


@click.command(
    cls=Command,
    epilog=examples(
        "fcn-batch plan big_image.tif --tile 512",
    ),
)
@click.argument("named", metavar="INPUT", shell_complete=complete_files)
@click.option(
    "-o",
    "--output",
    "folder",
    type=PATH,
    metavar="DIR",
    help="Folder that the outputs would go to; default: beside INPUT.",
)
@model_options
@click.option("-w", "--workers", default="0", metavar="N|auto", help="For so many processes, as `segment` has them.")
@click.option("--pyramid", is_flag=True, help="Count the room for the pyramid too.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, and as `facts` what it costs and needs.")
def plan(named: str, folder: Path | None, workers: str, pyramid: bool, as_json: bool, **chosen: Any) -> None:
    """Show how INPUT would be cut, what it would cost and need, without running anything."""
    from fcn_batch.pipeline.core.location import input_of
    from fcn_batch.workflows.description import describe, to_json
    from fcn_batch.workflows.inputs.many import refuse_remote
    from fcn_batch.workflows.plan import prepare
    from fcn_batch.workflows.processes.topology import count_of

    count = count_of(workers)
    given, local_only = input_of(named), chosen.pop("local_only")
    refuse_remote([given], local_only=local_only)
    prepared = prepare(given, _options(chosen), processes=max(1, count))
    if as_json:
        click.echo(to_json(prepared, folder, pyramid=pyramid))
        return
    echo_pairs(describe(prepared, folder, pyramid=pyramid, workers=count))


@click.command(
    cls=Command,
    epilog=examples("fcn-batch validate maps/scene.run.json", "fcn-batch validate maps/scene.classes.tif --json"),
)
@click.argument("output", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def validate(output: Path, as_json: bool, quiet: bool) -> None:
    """Read the outputs of a run again and compare them with its report.

    OUTPUT is NAME.run.json, an output beside it, or a folder with one run.json. Finds what a disk, a copy or a hand
    has changed: files that are damaged, missing or of another run, a wrong place, wrong classes.
    """
    from fcn_batch.pipeline.core.errors import IntegrityError
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.finished.validate import validate as run

    found = run(output, progress_for(quiet=quiet))
    click.echo(found.to_json()) if as_json else echo_pairs(found.describe())
    if not found.ok:
        raise IntegrityError(
            "map-changed",
            "{path}: not as it was made; make it again with --overwrite, or get a good copy",
            path=output,
        )


@click.command(
    cls=Command, epilog=examples("fcn-batch verify maps/scene.run.json", "fcn-batch verify maps/ --samples 50 --seed 7")
)
@click.argument("output", type=PATH)
@click.option("-n", "--samples", default=10, show_default=True, metavar="N", help="Windows to compute again.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Another seed takes other windows.")
@click.option("--local-only", is_flag=True, help="Refuse an input that is not on this machine: the report names it.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; errors only.")
def verify(output: Path, samples: int, seed: int, local_only: bool, as_json: bool, quiet: bool) -> None:
    """Compute random windows of a map again, from its input, and compare the classes.

    Each window is seen with twice the halo around it, in one piece. OUTPUT is NAME.run.json, an output beside it, or a
    folder with one run.json.
    """
    from fcn_batch.pipeline.core.errors import IntegrityError
    from fcn_batch.workflows.console.progress import progress_for
    from fcn_batch.workflows.finished.verify import verify as run

    found = run(output, samples, seed, progress_for(quiet=quiet), local_only=local_only)
    click.echo(found.to_json()) if as_json else echo_pairs(found.describe())
    if not found.ok:
        raise IntegrityError(
            "classes-wrong",
            "{path}: labels differ from what the network gives; see above, and make the map again",
            path=output,
        )
