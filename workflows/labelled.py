"""A raster with labels, and how well a network does on parts of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.capture import graph_of
from fcn_batch.pipeline.classes import NODATA
from fcn_batch.pipeline.errors import TrainingError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.geometry import Window, round_up
from fcn_batch.pipeline.metrics import Confusion
from fcn_batch.pipeline.model_card import InputSpec
from fcn_batch.pipeline.normalise import normalise
from fcn_batch.pipeline.plan import Precision
from fcn_batch.pipeline.predictor import Scaling, Tiles, make_tiles
from fcn_batch.pipeline.raster import RasterioSource
from fcn_batch.pipeline.recipe import Recipe
from fcn_batch.pipeline.tiling import Tile, exact_tiles

_EVALUATION_TILE = 512


@dataclass(frozen=True, slots=True)
class LabelledRaster:
    """An image and its labels on one grid, and how label ids become score channels."""

    image: RasterioSource
    labels: RasterioSource
    bands: tuple[int, ...]
    channel_of: NDArray[np.uint8]
    """For each of the 256 label values its channel, or 255 to ignore it."""

    @classmethod
    def open(cls, folder: Path, recipe: Recipe) -> "LabelledRaster":
        """Open the recipe's pair; TrainingError when image and labels are not on the same grid."""
        image = RasterioSource(folder / recipe.pair.image)
        labels = RasterioSource(folder / recipe.pair.labels)
        if image.info.size != labels.info.size or image.info.georeference != labels.info.georeference:
            raise TrainingError(
                f"{labels.info.path}: labels of {labels.info.size} do not lie on the grid of "
                f"{image.info.path}, {image.info.size}; warp them to the image first (gdalwarp -te … -ts …)"
            )
        if labels.info.dtype != "uint8":
            raise TrainingError(f"{labels.info.path}: labels must be uint8, got {labels.info.dtype}")
        if len(recipe.pair.bands) > image.info.bands:
            raise TrainingError(
                f"{image.info.path} has {image.info.bands} bands, [pair] names {', '.join(recipe.pair.bands)}"
            )
        channel_of = np.full(256, NODATA, dtype=np.uint8)
        for channel, info in enumerate(recipe.classes):
            channel_of[info.id] = channel
        return cls(image, labels, tuple(range(1, len(recipe.pair.bands) + 1)), channel_of)

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Channel numbers of a window, 255 where there is no label: (rows, cols)."""
        pixels = self.labels.read(window, (1,))
        return np.where(pixels.valid, self.channel_of[pixels.values[0]], np.uint8(NODATA))

    def read_image(self, window: Window, spec: InputSpec) -> NDArray[np.float32]:
        """Normalised bands of a window: (bands, rows, cols)."""
        pixels = self.image.read(window, self.bands)
        return normalise(pixels.values, pixels.valid, spec).astype(np.float32, copy=False)


def evaluate(
    network: Fcn, data: LabelledRaster, spec: InputSpec, recipe: Recipe, use: Literal["val", "test"]
) -> Confusion:
    """Confusion of the network over the val or test strips, each tile seen with its whole halo."""
    tiles = _tiles(network, spec, "fp32")
    confusion = Confusion.empty(len(recipe.classes))
    for tile, core in _tiles_of(network, data, recipe, use):
        pixels = data.image.read(tile.read, data.bands)
        channels = tiles.channels(pixels.values, pixels.valid, core.slices(tile.read))
        confusion += Confusion.count(data.read_labels(core), channels, len(recipe.classes))
    return confusion


def bf16_disagreement(network: Fcn, data: LabelledRaster, spec: InputSpec, recipe: Recipe) -> float:
    """Share of the test strips' valid pixels whose class is another one when the network runs in bfloat16."""
    ways = [_tiles(network, spec, precision) for precision in ("fp32", "bf16")]
    differing = seen = 0
    for tile, core in _tiles_of(network, data, recipe, "test"):
        pixels = data.image.read(tile.read, data.bands)
        here = core.slices(tile.read)
        exact, rough = (way.channels(pixels.values, pixels.valid, here) for way in ways)
        differing += int(((exact != rough) & pixels.valid[here]).sum())
        seen += int(pixels.valid[here].sum())
    return differing / seen if seen else 0.0


def _tiles(network: Fcn, spec: InputSpec, precision: Precision) -> Tiles:
    graph, _ = graph_of(network, len(spec.bands))
    scaling = Scaling(spec, str(next(network.parameters()).device))
    return make_tiles(network, graph, scaling, precision, (network.stride, _EVALUATION_TILE, False))


def _tiles_of(
    network: Fcn, data: LabelledRaster, recipe: Recipe, use: Literal["val", "test"]
) -> Iterator[tuple[Tile, Window]]:
    """Tiles with their halo, and the part of each one's core that is in the val or test strips."""
    size, side = data.image.info.size, round_up(_EVALUATION_TILE, network.stride)
    for region in recipe.split.regions(size, use):
        for row in exact_tiles(size, region, side, network.halo):
            for tile in row:
                yield tile, tile.core.intersection(region)
