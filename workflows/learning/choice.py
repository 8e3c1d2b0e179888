"""`--model auto`: the embedded model that was trained on images like this raster."""

import math
from collections.abc import Iterable

from fcn_batch.pipeline.core.errors import FcnBatchError, ModelError
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.network.weights import ModelFile
from fcn_batch.workflows.inputs.bands import choose_bands
from fcn_batch.workflows.inputs.resolution import ground_sample_distance, metres
from fcn_batch.workflows.learning.models import embedded

_TOLERANCE = 2.0
"""Factor by which a raster's resolution may differ from the training images' before people are warned."""
_WITHOUT_RESOLUTION = "aerial"
"""For rasters that do not say how large their pixels are."""


def choose_model(
    info: RasterInfo, bands: tuple[int, ...] | None, models: Iterable[ModelFile] | None = None
) -> tuple[ModelFile, str]:
    """The model whose bands the raster has and whose resolution is nearest to its own, and why it was chosen.

    ModelError when the raster has no model's bands: the message is that of the first one.
    """
    problems: list[FcnBatchError] = []
    fitting = []
    for model in embedded() if models is None else models:
        try:
            choose_bands(info, model.card.input, bands)
            fitting.append(model)
        except FcnBatchError as error:
            problems.append(error)
    if not fitting:
        raise (
            problems[0]
            if problems
            else ModelError("model-none", "--model auto: no model ships with this installation; give a file")
        )
    gsd = ground_sample_distance(info)
    if gsd is None:
        chosen = next((m for m in fitting if m.card.name == _WITHOUT_RESOLUTION), fitting[0])
        text = f"--model auto took {chosen.card.name}, but nothing says how large a pixel is; choose with --model"
        return chosen, text
    chosen = min(fitting, key=lambda m: abs(math.log(gsd / m.card.input.gsd_m)))
    if is_near(gsd, chosen):
        trained = metres(chosen.card.input.gsd_m)
        return chosen, f"--model auto took {chosen.card.name}: trained at {trained} per pixel, here {metres(gsd)}"
    return chosen, f"--model auto took {chosen.card.name}, the nearest there is: {misfit(gsd, chosen)}"


def misfit(gsd: float, model: ModelFile) -> str:
    """What to say of a model that was trained at quite another resolution."""
    card = model.card
    return (
        f"{card.name} was trained at {metres(card.input.gsd_m)} per pixel, this raster has {metres(gsd)}: expect poor "
        "classes; give --resample auto, or choose or train another model"
    )


def is_near(gsd: float, model: ModelFile) -> bool:
    """True when a model was trained at about this resolution."""
    return 1 / _TOLERANCE <= gsd / model.card.input.gsd_m <= _TOLERANCE
