"""Pictures of results, as PNG bytes: the one door to matplotlib, which is imported when a picture is drawn."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.metrics import Confusion, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fcn_batch.workflows.learning.history import Look

_MOST_NUMBERED = 40
"""Classes up to which cells hold their share as a number: more would not be readable."""
_Picture = NDArray[np.uint8]


def confusion_png(confusion: Confusion, legend: Legend, nothing: str | None = None) -> bytes:
    """Draw the confusion matrix: rows are labels, columns predictions, cells the share of their row.

    `nothing` names one more column, of labelled pixels without a prediction. Rows of classes that no pixel is
    labelled with stay empty.
    """
    counts = confusion.matrix if nothing is None else confusion.counts
    shares = ratio(counts, np.repeat(confusion.truth[:, None], counts.shape[1], axis=1))
    names, few = _names(legend), len(legend) <= _MOST_NUMBERED
    across = names if nothing is None else [*names, nothing]
    cell = 0.6 if few else 0.2
    with _figure(3.5 + cell * counts.shape[1], 2.5 + cell * len(names)) as (figure, png):
        axes = figure.add_subplot(xlabel="prediction", ylabel="label", title="Share of each label's pixels")
        picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(counts.shape[1]), across, rotation="vertical")
        axes.set_yticks(range(len(names)), names)
        for (row, column), share in np.ndenumerate(shares) if few else ():
            if not np.isnan(share):
                ink = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink)
        figure.colorbar(picture, ax=axes)
    return png.getvalue()


def samples_png(samples: Sequence[tuple[str, _Picture, _Picture, _Picture]], legend: Legend) -> bytes:
    """Draw windows below each other, with the legend at the bottom.

    A sample is its title, the image (rows, cols, 3), and labels and prediction: channel numbers, 255 for none.
    """
    from matplotlib.patches import Patch

    colours = np.full((256, 3), 128, dtype=np.uint8)
    colours[: len(legend)] = [one.rgb for one in legend.classes]
    with _figure(9, 3.1 * len(samples) + 0.6) as (figure, png):
        for (title, image, *maps), row in zip(samples, figure.subplots(len(samples), 3, squeeze=False), strict=True):
            pictures = [image, *(colours[one] for one in maps)]
            for axes, picture, text in zip(row, pictures, (title, "labels", "prediction"), strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set_axis_off()
                axes.set_title(text)
        patches = [Patch(color=c.colour, label=name) for c, name in zip(legend.classes, _names(legend), strict=True)]
        figure.legend(handles=patches, loc="outside lower center", ncols=5)
    return png.getvalue()


def curves_png(losses: Sequence[Sequence[float]], looks: "Sequence[Look]") -> bytes:
    """Draw the loss of every step, stage after stage, and mean IU and pixel accuracy on the val split."""
    begins = np.concatenate([[0], np.cumsum([len(stage) for stage in losses])])
    at = [begins[look.stage] + look.step for look in looks]
    with _figure(8, 5) as (figure, png):
        above, below = figure.subplots(2, 1, sharex=True)
        for begin, stage in zip(begins, losses, strict=False):
            above.plot(begin + np.arange(1, len(stage) + 1), stage, linewidth=0.6)
        above.set_ylabel("loss")
        below.plot(at, [look.mean_iu for look in looks], marker="o", label="mean IU")
        below.plot(at, [look.pixel_accuracy for look in looks], marker="o", label="pixel accuracy")
        below.set(xlabel="step", ylabel="val split", ylim=(0, 1))
        below.legend()
    return png.getvalue()


def _names(legend: Legend) -> list[str]:
    """Return the classes' names as labels: one line each, cut where they are long."""
    return [" ".join(one.name.split())[:28] for one in legend.classes]


@contextmanager
def _figure(width: float, height: float) -> "Iterator[tuple[Figure, io.BytesIO]]":
    """Give a figure to draw on, and the PNG that it becomes; no window opens and pyplot's state is left alone."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    png = io.BytesIO()
    with rc_context({"font.size": 8, "text.parse_math": False}), warnings.catch_warnings():  # a dollar is no formula
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it in the picture
        figure = Figure((width, height), dpi=120, layout="constrained")
        yield figure, png
        figure.savefig(png, format="png", bbox_inches="tight", metadata={"Software": None})
