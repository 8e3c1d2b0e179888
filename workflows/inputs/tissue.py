"""Where a slide has tissue: the rest is glass, which nobody wants a map of.

Stained tissue has a colour, glass has none: what counts is the saturation (max - min) / max of the mean colour of
squares of 16 micrometres. On the glass of an H&E slide it is below 0.03, on its palest tissue above 0.05 (measured on
CMU-1-Small-Region, openslide's test data). Squares next to tissue count too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.plan import InputIdentity, Plan
from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.core.tolerance import FAIL, OnError
from fcn_batch.pipeline.raster.clip import outlined
from fcn_batch.workflows.inputs.thumbnail import thumbnail

_MICRONS = 16.0
"""Side of a square."""
_SATURATION = 0.05
_AROUND = 2
"""Squares around tissue."""
_MOST_POINTS = 20_000
"""Of the outlines: they are part of the plan, which every worker reads."""


def find_tissue(
    identity: InputIdentity, bands: Sequence[int], known: Sequence[Plan] = (), on_error: OnError = FAIL
) -> tuple[Area | None, str]:
    """The tissue of a slide, in its pixels, and what to say of it; None: take all of it.

    `bands` show red, green and blue. What an earlier plan of the same input knows is not looked for again. `on_error`:
    what to do where the slide cannot be read.
    """
    if identity.microns is None or identity.crs_wkt is not None or identity.dtype != "uint8" or len(bands) != 3:
        return None, ""
    for plan in known:
        if plan.tissue is not None and plan.bands == tuple(bands) and plan.input.georeference == identity.georeference:
            return plan.tissue, _said(plan.tissue.pixels / identity.size.pixels)
    step = max(1, round(_MICRONS / identity.microns))
    mask = coloured(thumbnail(identity, bands, step, on_error))
    if not mask.any():
        return None, "no tissue was found, so all of the slide is computed"
    area = outlined(mask, step, _MOST_POINTS)
    return area, _said(area.pixels / identity.size.pixels)


def coloured(pixels: Pixels) -> NDArray[np.bool_]:
    """Which squares have colour, or neighbours that have: (rows, cols)."""
    values = pixels.values.astype(np.float32)
    highest = values.max(axis=0)
    mask: NDArray[np.bool_] = (highest - values.min(axis=0) > _SATURATION * highest) & pixels.valid
    for _ in range(_AROUND):
        grown = np.pad(mask, 1)
        mask = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:] | mask
    return mask


def _said(share: float) -> str:
    return (
        f"tissue was found on {100 * min(share, 1):.0f} % of the slide; the rest is no data in the map, and not "
        "computed where whole blocks have none; --tissue off computes all of it"
    )
