"""How well a network does on the held-out regions of labelled images: each tile is seen with its whole halo."""

from collections.abc import Iterable, Iterator
from typing import Any

from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Precision
from fcn_batch.pipeline.core.splits import Use
from fcn_batch.pipeline.core.tiling import Tile, exact_tiles
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.predictor import Scaling, Tiles, make_tiles
from fcn_batch.workflows.learning.labelled import LabelledImage

_TILE = 512


def evaluate(network: Any, images: Iterable[LabelledImage], spec: InputSpec, classes: int, use: Use) -> Confusion:
    """Confusion of the network over the regions for `use`."""
    tiles = tiles_of(network, spec, "fp32")
    confusion = Confusion.empty(classes)
    for image, tile, core in _walk(network, images, use):
        pixels = image.read(tile.read)
        channels = tiles.channels(pixels.values, pixels.valid, core.slices(tile.read))
        confusion += Confusion.count(image.read_labels(core), channels, classes)
    return confusion


def bf16_disagreement(network: Any, images: Iterable[LabelledImage], spec: InputSpec) -> float:
    """Share of the test regions' valid pixels whose class is another one when the network runs in bfloat16."""
    ways = [tiles_of(network, spec, precision) for precision in ("fp32", "bf16")]
    differing = seen = 0
    for image, tile, core in _walk(network, images, "test"):
        pixels = image.read(tile.read)
        here = core.slices(tile.read)
        exact, rough = (way.channels(pixels.values, pixels.valid, here) for way in ways)
        differing += int(((exact != rough) & pixels.valid[here]).sum())
        seen += int(pixels.valid[here].sum())
    return differing / seen if seen else 0.0


def tiles_of(network: Any, spec: InputSpec, precision: Precision) -> Tiles:
    """The network as it runs in `segment`, tile by tile."""
    graph, _ = graph_of(network, len(spec.bands))
    scaling = Scaling(spec, str(next(network.parameters()).device))
    return make_tiles(network, graph, scaling, precision, (network.stride, _TILE, False))


def _walk(network: Any, images: Iterable[LabelledImage], use: Use) -> Iterator[tuple[LabelledImage, Tile, Window]]:
    """Tiles with their halo, and the part of each one's core that is in the regions for `use`."""
    side = round_up(_TILE, network.stride)
    for image in images:
        for region in image.regions[use]:
            for row in exact_tiles(image.info.size, region, side, network.halo):
                for tile in row:
                    yield image, tile, tile.core.intersection(region)
