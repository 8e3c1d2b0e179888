"""Outputs into an object store: the run is made on a file system, as ever, then goes there whole, its report last."""

import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.pipeline.core.location import Url, input_of
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.raster.remote import Bucket
from fcn_batch.workflows.inputs.many import RASTER_SUFFIXES
from fcn_batch.workflows.outputs.publishing import Outputs

_AT_ONCE = 8


def destination(output: str | None, work: Path | None, *, local_only: bool) -> tuple[Path | None, Url | None]:
    """Folder in which a run makes its outputs, and the bucket that they then go to, if they do.

    OptionError when the two options do not go together, `local_only` forbids the bucket, or a file is named: a folder
    called out.tif is not what anybody wants.
    """
    place = None if output is None else input_of(output)
    if not isinstance(place, Url):
        if work is not None:
            raise OptionError(
                "option-conflict",
                "--work {work}: is for outputs that go to a bucket, as with -o s3://BUCKET/PREFIX",
                work=work,
            )
        if place is not None and place.suffix.lower() in (*RASTER_SUFFIXES, ".zarr") and not place.is_dir():
            raise OptionError(
                "output-not-folder",
                "-o {path}: outputs go into a folder, and this is the name of a file; give -o DIR",
                path=place,
            )
        return place, None
    if local_only:
        raise OptionError(
            "option-conflict",
            "-o {path}: not on this machine, and --local-only forbids that; give a folder",
            path=place,
        )
    if place.scheme not in ("s3", "gs"):
        raise OptionError(
            "output-unsupported",
            "-o {url}: nothing can be written there; give a folder, s3://BUCKET/PREFIX or gs://…",
            url=place,
        )
    return work or Path.cwd(), place


def plan_there(bucket: Bucket, outputs: Outputs) -> Plan | None:
    """The plan of the complete run whose outputs are there; None when there is none.

    OutputError for another one, and when there is no such bucket: before the run, not after it.
    """
    told = bucket.read(outputs.report)
    if told is None:
        bucket.sizes(outputs.report)
        return None
    try:
        return Plan.model_validate(json.loads(told)["plan"])
    except (ValueError, LookupError, TypeError) as error:
        raise OutputError(
            "report-unknown",
            "{url}: {report} there is no report of this version; give --overwrite, or another place",
            url=bucket.url,
            report=outputs.report,
        ) from error


def urls(bucket: Bucket, names: Iterable[str]) -> list[str]:
    """What objects are called."""
    return [f"{str(bucket.url).rstrip('/')}/{name}" for name in names]


def upload(bucket: Bucket, outputs: Outputs) -> list[str]:
    """Put the outputs of a complete run there and delete them here; what is told of them, as URLs.

    The report of an earlier run goes first, and that of this one comes last: without one, nothing there is complete.
    OutputError when something does not arrive; the outputs then stay here, and the same command tries again.
    """
    report = json.loads((outputs.folder / outputs.report).read_bytes())
    names: list[str] = report["outputs"]
    files = dict(_files(outputs.folder, names))
    if outputs.report in bucket.sizes(outputs.report):  # else nothing is deleted: not all who may write may do that
        bucket.delete([outputs.report])
    known = [key for name in outputs.names() for key in bucket.sizes(name)]
    bucket.delete([key for key in known if key not in files])
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(bucket.write, files, files.values()):
            pass
    there = {key: size for name in names for key, size in bucket.sizes(name).items()}
    wrong = next((key for key, path in files.items() if there.get(key) != path.stat().st_size), None)
    if wrong is not None:
        raise OutputError(
            "upload-incomplete",
            "{url}: {key} did not arrive whole; run the same command again",
            url=bucket.url,
            key=wrong,
        )
    bucket.write(outputs.report, outputs.folder / outputs.report)
    told = urls(bucket, [path.name for path in outputs.paths])
    _delete(outputs, names)
    return told


def _files(folder: Path, names: list[str]) -> Iterator[tuple[str, Path]]:
    """Key and path of every file of the outputs."""
    for name in names:
        place = folder / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _delete(outputs: Outputs, names: list[str]) -> None:
    (outputs.folder / outputs.report).unlink()  # from here on it is no complete run
    for name in names:
        place = outputs.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
