"""A raster in memory, plans for it, and what a network says about all of it at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.model_card import Band as BandSpec
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Cut, InputIdentity, Kernel, ModelIdentity, Plan
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, SourceFile
from fcn_batch.pipeline.network.predictor import Scaling
from fcn_batch.workflows.blocks.passes import Band, Effort, Pass
from tests.rasters import noise

SPEC = InputSpec(bands=tuple(BandSpec(name=name, mean=0.392, std=0.225) for name in ("r", "g", "b")), gsd_m=1.0)


def info_of(size: Size, storage: tuple[int, int] | None = None, bands: int = 3, dtype: str = "uint8") -> RasterInfo:
    """What would be known of such a raster."""
    return RasterInfo(
        path="/memory.tif",
        files=(),
        size=size,
        bands=bands,
        dtype=dtype,
        georeference=GeoReference(None, IDENTITY),
        descriptions=(None,) * bands,
        colour_roles=("undefined",) * bands,
        storage_block=storage or (1, size.width),
        ground=None,
    )


@dataclass
class ArraySource:
    """A raster in memory; keeps a list of the windows that were read."""

    values: NDArray[Any] = field(repr=False)
    valid: NDArray[np.bool_] = field(repr=False)
    storage: tuple[int, int] | None = None
    reads: list[Window] = field(default_factory=list, repr=False)

    @property
    def info(self) -> RasterInfo:
        return info_of(self.size, self.storage, len(self.values), str(self.values.dtype))

    @property
    def size(self) -> Size:
        return Size(*self.valid.shape)

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        if window.row < 0 or window.col < 0 or window.clipped(self.size) != window:
            raise ValueError(f"{window} is not inside {self.size}")
        self.reads.append(window)
        rows, cols = window.slices()
        return Pixels(self.values[[b - 1 for b in bands]][:, rows, cols].copy(), self.valid[rows, cols].copy())

    def close(self) -> None:
        pass


def memory_raster(height: int, width: int, seed: int = 0, empty: list[tuple[int, int]] | None = None) -> ArraySource:
    """Noise in which some pixels, and all rows of the stretches `empty`, have no data (but values, for a trap)."""
    valid = np.random.default_rng(seed).random((height, width)) > 0.02
    for start, stop in empty or []:
        valid[start:stop] = False
    return ArraySource(noise(3, height, width, seed=seed), valid)


def make_plan(size: Size, cut: Cut, *, confidence: bool = False) -> Plan:
    """A plan with that cut; what is not about the cut is made up."""
    return Plan(
        input=InputIdentity(
            path="/memory.tif",
            files=(),
            height=size.height,
            width=size.width,
            bands=3,
            dtype="uint8",
            crs_wkt=None,
            transform=IDENTITY,
            sources=(SourceFile(path="/memory.tif"),),
        ),
        model=ModelIdentity(path="/model", name="model", version="1", sha256="0" * 64),
        bands=(1, 2, 3),
        full_scale=255.0,
        cut=cut,
        exactness="exact" if cut.exact else "windows",
        confidence=confidence,
        kernel=Kernel(
            device="cpu",
            torch="",
            gdal="",
            fcn_batch="",
            threads=1,
            instructions="",
            torchvision="0",
            rasterio="1",
            numpy="2",
        ),
    )


def make_pass(source: ArraySource, cut: Cut, classes: int, *, confidence: bool = False) -> Pass:
    """What a pass works with; the class ids are 1, 3, 5, …"""
    ids = np.arange(1, 2 * classes, 2, dtype=np.uint8)
    return Pass(make_plan(source.size, cut, confidence=confidence), source, ids, "cpu", Effort())


def gathered(bands: Iterator[Band], part: Window) -> NDArray[np.uint8]:
    """The rows of a part, which must come from top to bottom without gaps."""
    rows, parts = part.row, []
    for band in bands:
        assert band.row == rows, "bands follow each other"
        assert band.classes.shape[1] == part.width
        assert band.classes.dtype == np.uint8
        assert len(band.classes) > 0
        rows += len(band.classes)
        parts.append(band.classes)
    assert rows == part.stop_row, "to the part's end and no further"
    return np.concatenate(parts)


def whole_scores(network: nn.Module, source: ArraySource, stride: int) -> NDArray[np.float64]:
    """Scores of the whole raster in one pass, in float64: (classes, rows, cols)."""
    grid = (round_up(source.size.height, stride), round_up(source.size.width, stride))
    pixels = Scaling(SPEC, "cpu", torch.float64).image(source.values, source.valid, grid)
    with torch.inference_mode():
        scores: NDArray[np.float64] = network.double()(pixels)[0].numpy()
    return scores[:, : source.size.height, : source.size.width]


def assert_classes(found: NDArray[np.uint8], scores: NDArray[np.float64], valid: NDArray[np.bool_]) -> None:
    """The best class id where there is data, but at ties; NODATA elsewhere."""
    assert found.shape == valid.shape
    assert (found[~valid] == NODATA).all()
    low, high = np.partition(scores, -2, axis=0)[-2:]
    clear = valid & (high - low > 1e-4 * np.abs(scores).max())
    assert clear.sum() >= 0.9 * valid.sum(), "few ties, or it would not be a test"
    assert (found[clear] == 2 * scores.argmax(axis=0)[clear] + 1).all()
    assert (found[valid] % 2 == 1).all()
