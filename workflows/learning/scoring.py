"""How well a network does on the held-out regions of labelled images, in numbers and in pictures.

Each tile is seen with its whole halo, as in `segment`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Precision
from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.core.splits import Use
from fcn_batch.pipeline.core.tiling import exact_tiles
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.predictor import Scaling, Tiles, make_tiles
from fcn_batch.workflows.learning.charts import samples_png
from fcn_batch.workflows.learning.labelled import LabelledImage

_TILE = 512
_SAMPLES = 6


def evaluate(network: Any, images: Iterable[LabelledImage], spec: InputSpec, classes: int, use: Use) -> Confusion:
    """Return the confusion of the network over the regions for `use`."""
    tiles = tiles_of(network, spec, "fp32")
    confusion = Confusion.empty(classes)
    for image, core, pixels, here in _walk(network, images, use):
        channels = tiles.channels(pixels.values, pixels.valid, here)
        confusion += Confusion.count(image.read_labels(core), channels, classes)
    return confusion


def bf16_disagreement(network: Any, images: Iterable[LabelledImage], spec: InputSpec) -> float:
    """Return the share of the test regions' valid pixels that bfloat16 gives another class than float32."""
    exact, rough = (tiles_of(network, spec, precision) for precision in ("fp32", "bf16"))
    differing = seen = 0
    for _, _, pixels, here in _walk(network, images, "test"):
        differs = exact.channels(pixels.values, pixels.valid, here) != rough.channels(pixels.values, pixels.valid, here)
        differing += int((differs & pixels.valid[here]).sum())
        seen += int(pixels.valid[here].sum())
    return differing / seen if seen else 0.0


def tiles_of(network: Any, spec: InputSpec, precision: Precision) -> Tiles:
    """Return the network as it runs in `segment`, tile by tile."""
    graph, _ = graph_of(network, len(spec.bands))
    scaling = Scaling(spec, str(next(network.parameters()).device))
    return make_tiles(network, graph, scaling, precision, (network.stride, _TILE, False))


def _walk(
    network: Any, images: Iterable[LabelledImage], use: Use
) -> Iterator[tuple[LabelledImage, Window, Pixels, tuple[slice, slice]]]:
    """Yield the parts of tiles in the regions for `use`, the pixels with their halo, and where in them the part is."""
    side = round_up(_TILE, network.stride)
    for image in images:
        for region in image.regions[use]:
            for row in exact_tiles(image.info.size, region, side, network.halo):
                for tile in row:
                    core = tile.core.intersection(region)
                    yield image, core, image.read(tile.read), core.slices(tile.read)


def draw_samples(folder: Path, network: Any, images: Sequence[LabelledImage], spec: InputSpec, legend: Legend) -> None:
    """Write samples.png: image, labels and prediction in the middles of up to six val regions, evenly chosen."""
    tiles = tiles_of(network, spec, "fp32")
    regions = [(image, region) for image in images for region in image.regions["val"]]
    samples = []
    for n in sorted({round(n) for n in np.linspace(0, len(regions) - 1, _SAMPLES)}):
        image, region = regions[n]
        height, width = min(_TILE, region.height), min(_TILE, region.width)
        core = Window(
            region.row + (region.height - height) // 2, region.col + (region.width - width) // 2, height, width
        )
        read = core.aligned(network.stride).padded(round_up(network.halo, network.stride)).clipped(image.info.size)
        pixels, here = image.read(read), core.slices(read)
        channels = tiles.channels(pixels.values, pixels.valid, here)
        picture = _visible(pixels.values[:, here[0], here[1]])
        samples.append((f"{image.name} {core.row}, {core.col}", picture, image.read_labels(core), channels))
    write_whole(folder / "samples.png", samples_png(samples, legend))


def _visible(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return three bands (the first one thrice when there are fewer), stretched to 0 to 255: (rows, cols, 3)."""
    shown = values[:3] if len(values) >= 3 else values[[0, 0, 0]]
    low, high = np.percentile(shown, [1, 99])
    return np.asarray(255 * ((shown - low) / max(high - low, 1e-9)).clip(0, 1), dtype=np.uint8).transpose(1, 2, 0)
