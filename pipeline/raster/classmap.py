"""Writing the class map as a cloud-optimised GeoTIFF (COG) with class names, window by window.

The COG driver can only copy a finished raster, so a plain tiled GeoTIFF is written first. Overviews take
the most frequent class (MODE): any average of class ids would be a class that is not there.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio.shutil.copy raises; public under no other name
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import WktVersion
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.core.sidefile import write_side_file
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, gdal_cache

BLOCK = 512
"""Rows and columns of a storage block."""
CACHE_MB = 256
"""GDAL's block cache while writing: a row of blocks of a map 500 000 pixels wide."""
COG_OPTIONS = {"compress": "DEFLATE", "blocksize": BLOCK, "overview_resampling": "MODE", "bigtiff": "IF_SAFER"}
"""Options of GDAL's COG driver."""
_STRUCTURE = b"GDAL_STRUCTURAL_METADATA_SIZE="
Windows = Iterable[tuple[Window, NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True)
class MapHead:
    """Everything about a class map but its pixels."""

    georeference: GeoReference
    size: Size
    legend: Legend
    tags: Mapping[str, str | int] = field(default_factory=dict)
    """How the map was made; becomes the file's metadata."""
    ground: GroundControl | None = None
    """Where a few pixels lie, when no transform says it; the georeference is then that of plain pixels."""


def write_cog(path: Path, head: MapHead, windows: Windows) -> None:
    """Write the class map `path` and its side file; both appear complete or not at all.

    `windows` yields each pixel of the map once, in any order, as a window and its class ids, shape (rows,
    cols), 255 where there is no data; windows that are whole blocks of 512x512 are fastest. On the way there is
    a GeoTIFF of the same size in the same folder; it is removed in any case. An existing `path` is replaced.
    The result is read back and compared, as a full disk does not always show while writing, and GeoTIFF has no
    keys for some reference systems (a rotated pole), and no room for thousands of ground control points: these stand
    in the side file.

    ValueError when the windows do not fit the map; OutputError when something cannot be written. Errors
    that `windows` raises pass through.
    """
    scratch, partial = path.with_name(path.name + ".tiled"), path.with_name(path.name + ".partial")
    side = Path(f"{partial}.aux.xml")
    # The COG driver keeps its overviews in a file beside the output, which a failure may leave there.
    aside = (scratch, partial, side, Path(f"{scratch}.aux.xml"), Path(f"{partial}.ovr.tmp"))
    _delete(aside)  # of a run that was killed: GDAL refuses to write over a part of a GeoTIFF
    try:
        with gdal_cache(CACHE_MB):
            checksums = _write_tiles(scratch, head, windows)
            with _writing(path), accept_pixel_space():
                rasterio.shutil.copy(scratch, partial, driver="COG", **COG_OPTIONS)
                side.unlink(missing_ok=True)  # GDAL's: ours holds the same and takes its place
            _compare(partial, checksums, path)
        with _writing(path):
            _write_names(partial, head)
            differs = place_differs(partial, head)
        if differs is not None:
            raise OutputError(
                "place-lost",
                "{path} does not keep the raster's place on the Earth: {differs}; "
                "give the raster a reference system that GeoTIFF knows (gdal_edit.py -a_srs)",
                path=path,
                differs=differs,
            )
        with _writing(path):
            sync([partial, side])  # complete on the disk before they get their names
            for stale in (".ovr", ".msk"):  # of the file that had this name: GDAL would take them for this one's
                Path(f"{path}{stale}").unlink(missing_ok=True)
            side.replace(f"{path}.aux.xml")
            partial.replace(path)
    finally:
        _delete(aside)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write_names(partial: Path, head: MapHead) -> None:
    """The side file of the finished map `partial`; with the place in it too if the map itself does not keep that."""
    if place_differs(partial, head) is None:
        write_side_file(partial, head.legend)
    else:
        write_side_file(partial, head.legend, head.georeference.crs_wkt, head.ground)


def _write_tiles(scratch: Path, head: MapHead, windows: Windows) -> list[tuple[Window, int]]:
    """Write the plain GeoTIFF; return the windows with the checksums of their pixels."""
    checksums: list[tuple[Window, int]] = []
    with _writing(scratch), accept_pixel_space():
        dataset = rasterio.open(scratch, "w", **_profile(head))
    try:
        with _writing(scratch):
            _describe(dataset, head)
        for window, values in windows:
            if values.shape != (window.height, window.width) or values.dtype != np.uint8:
                raise ValueError(f"{window} came with {values.dtype} values of shape {values.shape}")
            if window.row < 0 or window.col < 0 or window.clipped(head.size) != window:
                raise ValueError(f"{window} is not inside the map of {head.size}")
            with _writing(scratch):
                dataset.write(values, 1, window=_rasterio_window(window))
            checksums.append((window, _checksum(values)))
    finally:
        with _writing(scratch):
            dataset.close()
    covered = sum(window.pixels for window, _ in checksums)
    if covered != head.size.pixels:
        raise ValueError(f"the windows hold {covered} pixels, but the map has {head.size.pixels}")
    return checksums


def _profile(head: MapHead) -> dict[str, Any]:
    """Creation options of the plain GeoTIFF."""
    ref, size, ground = head.georeference, head.size, head.ground
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": size.height,
        "width": size.width,
        "count": 1,
        "dtype": "uint8",
        "nodata": NODATA,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "DEFLATE",
        "zlevel": 1,
        "bigtiff": "IF_SAFER",
    }
    if ref.crs_wkt is not None:
        profile["crs"] = CRS.from_wkt(ref.crs_wkt)
    if ground is not None:
        # CRS() where none is known: rasterio takes no points without a system
        profile["crs"] = CRS.from_wkt(ground.crs_wkt) if ground.crs_wkt is not None else CRS()
        profile["gcps"] = [GroundControlPoint(row=r, col=c, x=x, y=y, z=z) for r, c, x, y, z in ground.points]
    elif ref.crs_wkt is not None or ref.transform != IDENTITY:
        profile["transform"] = Affine(*ref.transform)
    return profile


def _describe(dataset: Any, head: MapHead) -> None:
    """Set palette, band name, the CF flag attributes and how the map was made."""
    legend = head.legend
    palette = {c.id: (*c.rgb, 255) for c in legend.classes}
    dataset.write_colormap(1, {**palette, NODATA: (0, 0, 0, 0)})
    dataset.set_band_description(1, "classes")
    dataset.update_tags(1, flag_values=" ".join(str(i) for i in legend.ids), flag_meanings=legend.flag_meanings)
    # GDAL ends a name at its first colon
    dataset.update_tags(**{key.replace(":", "_"): str(value) for key, value in head.tags.items()})


def _compare(cog: Path, checksums: list[tuple[Window, int]], path: Path) -> None:
    """Read the COG back; OutputError when a window is not what was written."""
    with _writing(path), accept_pixel_space(), rasterio.open(cog, driver="GTiff") as dataset:
        for window, expected in checksums:
            if _checksum(dataset.read(1, window=_rasterio_window(window))) != expected:
                raise OutputError(
                    "output-damaged",
                    "{path} does not read back as it was written in {where}; check the disk, then run again",
                    path=path,
                    where=f"rows {window.row}..{window.stop_row - 1}, cols {window.col}..{window.stop_col - 1}",
                )
        if not _in_order(dataset, cog):
            raise OutputError(
                "output-damaged",
                "{path}: the disk failed while it was written; check the disk, then run again",
                path=path,
            )


def _in_order(dataset: Any, cog: Path) -> bool:
    """True when the directories of a COG come first, before its pixels, without a gap.

    GDAL says nothing of a write of a directory that fails in passing: it writes it again, at the end of the file. ::

        header | GDAL_STRUCTURAL_METADATA_SIZE=000140 bytes | these | to even | directories | pixels, full map last
    """
    with cog.open("rb") as file:
        head = file.read(64)
    if _STRUCTURE not in head:
        return False
    size = head.index(_STRUCTURE) + len(_STRUCTURE)
    start = size + len("000140 bytes\n") + int(head[size : size + 6])
    levels = (None, *range(len(dataset.overviews(1))))
    places = [int(dataset.get_tag_item("IFD_OFFSET", "TIFF", 1, level)) for level in levels]
    pixels = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))  # those of the full map are the last
    return [start + start % 2, *places[1:], pixels] == sorted([*places, pixels])


def place_differs(map_file: Path, head: MapHead) -> str | None:
    """How the place of a map on the disk (with its side file) differs from what `head` says; None: they agree."""
    ref, ground = head.georeference, head.ground
    with accept_pixel_space(), rasterio.open(map_file, driver="GTiff") as dataset:
        crs, transform, (found, found_crs) = dataset.crs, tuple(dataset.transform)[:6], dataset.gcps
    wanted = ref.transform if ground is None else IDENTITY  # of a coarser level, pixels of the finest: no place either
    if not np.allclose(transform, wanted, rtol=1e-12, atol=0):
        return f"its transform reads as {transform} instead of {wanted}"
    if ground is None:
        return "it has ground control points" if found else _system_differs(crs, ref.crs_wkt)
    points = [(p.row, p.col, p.x, p.y, p.z or 0.0) for p in found]
    if len(points) != len(ground.points):
        return f"it has {len(points)} ground control points instead of {len(ground.points)}"
    for point, told in zip(points, ground.points, strict=True):
        if not np.allclose(point, told, rtol=1e-12, atol=1e-9):
            return f"a ground control point reads as {point} instead of {told}"
    return _system_differs(found_crs, ground.crs_wkt)


def _system_differs(crs: CRS | None, wkt: str | None) -> str | None:
    wanted = CRS.from_wkt(wkt) if wkt is not None else CRS()
    # rasterio reads systems by way of WKT1 where that exists, so some come back in other words
    if (crs or CRS()) in (wanted, CRS.from_wkt(wanted.to_wkt()) if wanted else None):
        return None
    read = crs.to_wkt(version=WktVersion.WKT2_2019) if crs else None
    return f"its reference system reads as {read} instead of {wkt}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the errors of GDAL and of the file system into OutputError."""
    try:
        yield
    except (OSError, CPLE_BaseError, SystemError) as error:  # SystemError: rasterio without GDAL's reason
        raise OutputError(
            "output-unwritable",
            "{path} cannot be written: {reason}; check the free space and your rights in {folder}, then run again",
            path=path,
            reason=error.__cause__ or error,
            folder=path.parent,
        ) from error


def _checksum(values: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _rasterio_window(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col, window.row, window.width, window.height)
