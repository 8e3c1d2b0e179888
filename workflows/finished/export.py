"""`fcn-batch export`: a class map in another form, cleaned up on the way if wanted.

    map -> majority filter -> clip -> writer

The filter comes first, so that the clip's edge decides nothing but what is left out. Every target is made under
another name beside its place and renamed when it is whole.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import InputError, OptionError, OutputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.location import input_of
from fcn_batch.pipeline.core.majority import Majority
from fcn_batch.pipeline.core.maps import ClassMap, DerivedMap, Ids
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import Found, cache_mb, chunk_windows, find_map, ground_control, on_grid_of_input
from fcn_batch.workflows.finished.survey import Survey, survey
from fcn_batch.workflows.finished.targets import ENDINGS, VECTORS
from fcn_batch.workflows.outputs.publishing import find_run

if TYPE_CHECKING:
    from fcn_batch.pipeline.raster.vectorfile import VectorKind

_SIDE = 1000
"""Rows and columns of a picture that nobody looks at."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for. OptionError when options do not fit the target."""

    source: Path
    target: str
    output: Path | None = None
    majority: int | None = None
    clip: Path | None = None
    min_area: float | None = None
    """Square metres."""
    simplify: float | None = None
    """Pixels."""
    zones: Path | None = None
    field: str | None = None
    """Attribute that names a zone."""
    layer: str | None = None
    """Of the file of `clip` or `zones`."""
    grid: Literal["map", "input"] = "map"
    """Whose pixels to write: the map's own, or those of what it was made from."""
    local_only: bool = False
    """True: nothing that a report names is fetched from another machine."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.target not in ENDINGS:
            raise OptionError(
                "option-value",
                "--{option} {value}: no such form of a map; give one of {choices}",
                option="to",
                value=self.target,
                choices=", ".join(ENDINGS),
            )
        for option, value in (("min-area", self.min_area), ("simplify", self.simplify)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise OptionError("option-value", "--{option} {value}: give 0 or more", option=option, value=value)
        endings = ENDINGS[self.target]
        vectors, one_file = self.target in VECTORS, (self.zones is None) != (self.clip is None)
        for option, given, fits, remedy in (
            ("min-area", self.min_area, vectors, f"it is for {', '.join(VECTORS)}"),
            ("simplify", self.simplify, vectors, f"it is for {', '.join(VECTORS)}"),
            ("zones", self.zones, self.target == "csv", "it is for csv"),
            ("grid", self.grid if self.grid != "map" else None, self.target == "cog", "it is for cog"),
            ("field", self.field, self.zones is not None, "give --zones, whose attribute it names"),
            ("layer", self.layer, one_file, "give one of --zones and --clip, whose layer it names"),
            ("output", self.output, str(self.output).lower().endswith(endings), f"end it in {' or '.join(endings)}"),
        ):
            if given is not None and not fits:
                raise OptionError(
                    "option-conflict",
                    "--{option} {value} does not go with the rest of the command (--to {target}); {remedy}",
                    option=option, value=given, target=self.target, remedy=remedy,
                )  # fmt: skip


class Named(DerivedMap):
    """A class map with a name and a colour for every id it holds."""

    def __init__(self, source: ClassMap, legend: Legend) -> None:
        super().__init__(source)
        self.legend: Legend = legend


def export(order: Order, progress: RunProgress) -> Path:
    """Write what `order` asks for and return its path.

    InputError for a map that is none, OutputError when something exists already or cannot be written, OptionError
    when a target would replace what it is made from.
    """
    found = find_map(order.source)
    target = _target(order, found)
    map_, write = _cleaned(order, found), _WRITERS.get(order.target, _to_vectors)
    try:
        write(order, map_, target, progress)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path}: cannot be written ({reason}); make room, or give another file with -o",
            path=target,
            reason=error.strerror or error,
        ) from error
    return target


def _cleaned(order: Order, found: Found) -> Found:
    """The map after the filter and the clip, in this order."""
    source, cleaned = found.source, []
    if order.majority is not None:
        source = Majority(source, order.majority)
        cleaned.append(f"majority of {order.majority} × {order.majority} pixels")
    if order.clip is not None:
        from fcn_batch.pipeline.raster.clip import Clipped

        source = Clipped(source, order.clip, order.layer)
        cleaned.append(f"clipped by {order.clip.name}")
    if order.grid == "input":
        source = on_grid_of_input(found, source)
        cleaned.append("on the grid of the input")
    return replace(found, source=source, cleaned=tuple(cleaned))


def _target(order: Order, found: Found) -> Path:
    """Where to write; OptionError when that is read from, OutputError when it exists and may not be replaced."""
    target = order.output
    if target is None:
        stem = found.path.with_name(found.path.name.removesuffix(found.path.suffix))
        target = Path(f"{stem}{ENDINGS[order.target][0]}")
        if target.resolve() == found.path.resolve():
            target = Path(f"{stem}.export{ENDINGS[order.target][0]}")
    read = [order.source, found.path, order.clip, order.zones]
    if found.plan is not None:
        read += [place for place in map(input_of, found.plan.input.places) if isinstance(place, Path)]
    written = [target, *_beside(order.target, target)]
    places = [one.resolve() for one in written]
    for path in read:
        if path is not None and not {path.resolve(), *path.resolve().parents}.isdisjoint(places):
            raise OptionError(
                "output-is-input",
                "-o {path} would replace {other}, which is read; give another file",
                path=target,
                other=path,
            )
    for place in places:
        if place.name in _of_a_run(place):
            raise OptionError(
                "output-of-a-run",
                "-o {path} would replace {other}, an output of a run; give another name",
                path=target,
                other=place.name,
            )
    there = [path for path in written if path.exists() or path.is_symlink()]
    if there and not order.overwrite:
        raise OutputError(
            "output-exists",
            "{path}: exists already; give --overwrite to replace it, or another file with -o",
            path=there[0],
        )
    if not target.absolute().parent.is_dir():
        raise OutputError(
            "folder-missing",
            "{path}: the folder {folder} does not exist; make it first",
            path=target,
            folder=target.absolute().parent,
        )
    return target


def _of_a_run(place: Path) -> list[str]:
    """Names of all outputs of the run that a file with this name would be of; empty when there is no such run."""
    try:
        outputs, report = find_run(place)
    except InputError:
        return []
    return [*report.get("outputs", ()), outputs.report]


def _beside(kind: str, target: Path) -> list[Path]:
    """Files that are written beside the target."""
    return [Path(f"{target}.aux.xml"), target.with_suffix(".qml")] if kind == "cog" else []


def _to_vectors(order: Order, found: Found, target: Path, progress: RunProgress) -> None:
    source, kind = _named(found.source, progress), cast("VectorKind", order.target)
    write_vectors(source, target, kind, progress, min_area=order.min_area or 0.0, simplify=order.simplify or 0.0)


def write_vectors(
    source: ClassMap,
    target: Path,
    kind: "VectorKind",
    progress: RunProgress,
    *,
    min_area: float = 0.0,
    simplify: float = 0.0,
) -> None:
    """Write the polygons of a map's classes to `target`: each region of pixels that share sides is one polygon.

    `min_area`: square metres below which a polygon is left out; pixels where the map cannot say its areas. `simplify`:
    side, in pixels, of what may be cut off or filled in along borders. OptionError when something that it takes is not
    installed; InputError for a map that cannot be read; OutputError when `target` cannot be written.
    """
    from fcn_batch.pipeline.raster.crs import row_areas_m2
    from fcn_batch.pipeline.raster.gdal import gdal_cache
    from fcn_batch.pipeline.raster.polygons import Regions, Strip, polygonise, strips_of
    from fcn_batch.pipeline.raster.vectorfile import VectorHead, write_polygons

    def counted(strips: Iterator[Strip]) -> Iterator[Strip]:
        for strip in strips:
            yield strip
            progress.advance(strip.ids.size)  # asked for the next one: this one is done

    def large(some: Regions) -> Regions:
        measure = some.pixels if some.areas is None else some.areas
        return some.only(measure >= min_area) if min_area else some

    names = {entry.id: entry.name for entry in source.legend.classes} if source.legend else {}
    head = VectorHead(kind, target.stem, source.georeference, source.size, names)
    areas = row_areas_m2(source.georeference, source.size)
    progress.start("polygons", source.size.pixels, 0)
    try:
        with gdal_cache(cache_mb(source.block)):
            strips = counted(strips_of(source, simplify=simplify > 0))
            write_polygons(target, head, map(large, polygonise(strips, areas, simplify)))
    finally:
        progress.stop()


def _to_ome_zarr(order: Order, found: Found, target: Path, progress: RunProgress) -> None:
    from fcn_batch.workflows.outputs.pyramid import write_ome_zarr

    microns = None if found.plan is None else found.plan.input.microns
    source = _named(found.source, progress)
    write_ome_zarr(source, source.legend, target, microns, progress, overwrite=order.overwrite)


def _to_cog(_: Order, found: Found, target: Path, progress: RunProgress) -> None:
    from fcn_batch.pipeline.core.qml import qgis_style
    from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
    from fcn_batch.workflows.outputs.stitch import provenance

    source = _named(found.source, progress)
    tags = {} if found.plan is None else provenance(found.plan)
    head = MapHead(source.georeference, source.size, source.legend, tags, ground_control(found))
    write_cog(target, head, _windows(source, progress))
    write_whole(target.with_suffix(".qml"), qgis_style(source.legend))


def _windows(source: ClassMap, progress: RunProgress) -> Iterator[tuple[Window, Ids]]:
    """Read the map window by window and show how far it is."""
    progress.start("writing the GeoTIFF", source.size.pixels, 0)
    try:
        for window in chunk_windows(source.size, source.block):
            yield window, source.read(window)
            progress.advance(window.pixels)
    finally:
        progress.stop()


def _to_png(_: Order, found: Found, target: Path, progress: RunProgress) -> None:
    from fcn_batch.workflows.finished.quicklook import SIDE, quicklook_png

    seen = survey(found.source, SIDE, progress)
    write_whole(target, quicklook_png(seen, found.ground, found.name, _facts(found)))


def _to_html(order: Order, found: Found, target: Path, progress: RunProgress) -> None:
    from fcn_batch.workflows.finished.page import SIDE, About, make_page

    seen = survey(found.source, SIDE, progress)
    about = About(found.name, found.ground, found.report or {}, found.plan, found.cleaned, order.local_only)
    write_whole(target, make_page(seen, about))


def _to_csv(order: Order, found: Found, target: Path, progress: RunProgress) -> None:
    """Write the table of the whole map, a row for each class, or that of the zones."""
    if order.zones is None:
        write_whole(target, class_table(survey(found.source, _SIDE, progress)))
        return
    from fcn_batch.workflows.finished.zones import write_zones

    source = _named(found.source, progress)
    write_zones(source, order.zones, target, progress, name_field=order.field, layer=order.layer)


_WRITERS = {"cog": _to_cog, "png": _to_png, "html": _to_html, "ome-zarr": _to_ome_zarr, "csv": _to_csv}
"""By target; the others are vectors."""


def class_table(seen: Survey) -> str:
    """CSV with class_id, class, pixels, area_m2 (empty where it cannot be said) and share of the pixels with data."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class_id", "class", "pixels", "area_m2", "share"])
    for one in seen.classes:
        area = "" if one.area_m2 is None else repr(float(f"{one.area_m2:.12g}"))
        table.writerow([one.info.id, one.info.name, one.pixels, area, repr(float(f"{one.share:.9g}"))])
    return text.getvalue()


def _facts(found: Found) -> str:
    """One line about a map: model, exactness, system, size."""
    from fcn_batch.pipeline.raster.crs import system_name

    size = found.source.size
    parts = [system_name(found.source.georeference), f"{size.width:,} × {size.height:,} px"]
    if found.plan is not None and found.report is not None:
        parts = [f"{found.plan.model.name} {found.plan.model.version}", str(found.report.get("exactness", "")), *parts]
    return " · ".join(part for part in parts if part)


def _named(source: ClassMap, progress: RunProgress) -> Named:
    """The map with its own legend, else with names for the ids that it holds, which are looked for."""
    if source.legend is not None:
        return Named(source, source.legend)
    return Named(source, survey(source, _SIDE, progress, "looking for classes").legend)
