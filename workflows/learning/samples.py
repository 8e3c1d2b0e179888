"""Pictures of what a trained network makes of the val split: image, labels and prediction side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.workflows.learning.charts import Sample, samples_png
from fcn_batch.workflows.learning.labelled import LabelledImage
from fcn_batch.workflows.learning.scoring import tiles_of

_ROWS = 6
_SIDE = 512


def draw_samples(folder: Path, network: Any, images: Sequence[LabelledImage], spec: InputSpec, legend: Legend) -> None:
    """Write samples.png: the middles of up to six val regions, evenly chosen."""
    tiles = tiles_of(network, spec, "fp32")
    regions = [(image, region) for image in images for region in image.regions["val"]]
    chosen = sorted({round(n) for n in np.linspace(0, len(regions) - 1, _ROWS)})
    samples = []
    for image, region in (regions[n] for n in chosen):
        core = _middle(region)
        read = core.aligned(network.stride).padded(round_up(network.halo, network.stride)).clipped(image.info.size)
        pixels = image.read(read)
        here = core.slices(read)
        channels = tiles.channels(pixels.values, pixels.valid, here)
        picture = _visible(pixels.values[:, here[0], here[1]])
        samples.append(Sample(f"{image.name} {core.row}, {core.col}", picture, image.read_labels(core), channels))
    write_whole(folder / "samples.png", samples_png(samples, legend))


def _middle(region: Window) -> Window:
    height, width = min(_SIDE, region.height), min(_SIDE, region.width)
    return Window(region.row + (region.height - height) // 2, region.col + (region.width - width) // 2, height, width)


def _visible(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Three bands (the first one thrice when there are fewer), stretched to 0 to 255: (rows, cols, 3)."""
    shown = values[:3] if len(values) >= 3 else values[[0, 0, 0]]
    low, high = np.percentile(shown, [1, 99])
    return np.asarray(255 * ((shown - low) / max(high - low, 1e-9)).clip(0, 1), dtype=np.uint8).transpose(1, 2, 0)
