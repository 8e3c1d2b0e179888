"""`--model auto`: the embedded model that was trained on images like this raster."""

import math
from collections.abc import Iterable

from fcn_batch.pipeline.crs import row_areas_m2
from fcn_batch.pipeline.errors import FcnBatchError, ModelError
from fcn_batch.pipeline.raster import RasterInfo
from fcn_batch.pipeline.weights import ModelFile
from fcn_batch.workflows.bands import choose_bands
from fcn_batch.workflows.models import embedded

_TOLERANCE = 2.0
"""Factor by which a raster's resolution may differ from the training images' before people are warned."""
_WITHOUT_RESOLUTION = "aerial"
"""For rasters that do not say how large their pixels are."""


def ground_sample_distance(info: RasterInfo) -> float | None:
    """Metres per pixel: in the raster's middle row, or as a slide says; None when nothing says so."""
    areas = row_areas_m2(info.georeference, info.size)
    if areas is not None:
        return math.sqrt(areas[info.size.height // 2])
    return None if info.microns is None else info.microns * 1e-6


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
        raise problems[0] if problems else ModelError("--model auto: no model ships with this installation")
    gsd = ground_sample_distance(info)
    if gsd is None:
        chosen = next((m for m in fitting if m.card.name == _WITHOUT_RESOLUTION), fitting[0])
        return (
            chosen,
            f"--model auto took {chosen.card.name}, but nothing says how large a pixel is; choose with --model",
        )
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
        "classes; resample it (gdalwarp -tr), or choose or train another model"
    )


def is_near(gsd: float, model: ModelFile) -> bool:
    """True when a model was trained at about this resolution."""
    return 1 / _TOLERANCE <= gsd / model.card.input.gsd_m <= _TOLERANCE


def metres(value: float) -> str:
    """A length as people write it.

    >>> metres(7421.0), metres(0.13214), metres(0.004), metres(5e-7)
    ('7.42 km', '0.132 m', '4 mm', '0.5 µm')
    """
    units = (("km", 1e3, 1e3), ("m", 1e-2, 1.0), ("mm", 1e-3, 1e-3), ("µm", 0.0, 1e-6))
    unit, size = next((name, size) for name, least, size in units if value >= least)
    return f"{value / size:.3g} {unit}"
