"""Class maps in memory and as files, for tests of what reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.core.plan import Cut, Kernel, ModelIdentity, Plan
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows.inputs.identity import identify

COLOURS = ("#1f6fb4", "#1b7837", "#e0c48c", "#d7301f", "#542788")


def legend_of(*names: str) -> Legend:
    """Classes from id 0 on, in colours that are far from each other."""
    return Legend(classes=tuple(ClassInfo(id=k, name=n, colour=COLOURS[k % 5]) for k, n in enumerate(names)))


class ArrayMap:
    """A class map in memory that refuses windows beyond its edge."""

    def __init__(
        self, ids: NDArray[np.uint8], legend: Legend | None = None, georeference: GeoReference | None = None
    ) -> None:
        self.ids = ids
        self.size = Size(*ids.shape)
        self.georeference = georeference or GeoReference(None, IDENTITY)
        self.block = (7, 9)
        self.legend = legend

    def read(self, window: Window) -> Ids:
        """A copy of the window."""
        assert window.clipped(self.size) == window
        return self.ids[window.slices()].copy()


def whole(source: ClassMap) -> Ids:
    """All of a map."""
    return source.read(Window(0, 0, source.size.height, source.size.width))


def patches(height: int, width: int, classes: int, seed: int = 0, side: int = 10) -> NDArray[np.uint8]:
    """Squares of `side` pixels of random classes."""
    small = np.random.default_rng(seed).integers(0, classes, (-(-height // side), -(-width // side)))
    return small.repeat(side, axis=0).repeat(side, axis=1)[:height, :width].astype(np.uint8)


def write_map(path: Path, ids: NDArray[np.uint8], legend: Legend, georeference: GeoReference) -> Path:
    """A map as `fcn-batch segment` leaves it: a GeoTIFF with names."""
    size = Size(*ids.shape)
    write_cog(path, MapHead(georeference, size, legend), [(Window(0, 0, size.height, size.width), ids)])
    return path


def utm(*transform: float) -> GeoReference:
    """A place near 15° E, 45° N, in UTM zone 33; default: north-up pixels of 10 m."""
    a, b, c, d, e, f = transform or (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    return GeoReference(wkt("EPSG:32633"), (a, b, c, d, e, f))


def wkt(code: str) -> str:
    """WKT2 of a system."""
    text: Any = rasterio.crs.CRS.from_user_input(code).to_wkt(version="WKT2_2019")
    return str(text)


def plan_of(image: Path, model: Path | None = None, **changes: Any) -> Plan:
    """The plan of a run over the raster `image`; `changes` are of its input, such as microns."""
    info = inspect(image)
    size = info.size
    return Plan(
        input=identify(info).model_copy(update=changes),
        model=ModelIdentity(path=str(model or "nowhere"), name="tiny-model", version="3", sha256="ab" * 32),
        bands=tuple(range(1, info.bands + 1)),
        full_scale=255.0,
        cut=Cut(
            way="stream", chunk=32, lane=round_up(size.width, 32), segment=32, tile=32, overlap=0, stride=32, blend=None
        ),
        kernel=Kernel(
            device="cpu",
            torch="2.10.0+cpu",
            gdal="3.10.3",
            fcn_batch="0.5.0",
            threads=1,
            instructions="AVX2",
            torchvision="0",
            rasterio="1",
            numpy="2",
        ),
    )
