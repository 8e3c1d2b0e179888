"""Pictures of results, as PNG bytes: the one door to matplotlib, which is imported when a picture is drawn.

Figures are drawn on canvases of their own (Agg), so no window opens and no global state of pyplot is touched.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.metrics import Confusion, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_LONGEST_NAME = 28
_MOST_NUMBERED = 40
"""Classes up to which cells hold their share as a number: more would not be readable."""
_DPI = 120


class Look(Protocol):
    """Scores on the val split at one step of a training."""

    @property
    def stage(self) -> int:
        """Number of the stage, from 0."""

    @property
    def step(self) -> int:
        """Step of the stage, from 1."""

    @property
    def mean_iu(self) -> float:
        """Mean intersection over union."""

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels given their class."""


def confusion_png(confusion: Confusion, legend: Legend, nothing: str | None = None) -> bytes:
    """The confusion matrix as a picture: rows are labels, columns predictions, cells the share of their row.

    `nothing` names one more column, of labelled pixels without a prediction. Rows of classes that no pixel is
    labelled with stay empty. ValueError when legend and matrix are of different classes.
    """
    if len(legend) != confusion.counts.shape[0]:
        raise ValueError(f"{len(legend)} classes, but a matrix of {confusion.counts.shape[0]}")
    counts = confusion.matrix if nothing is None else confusion.counts
    shares = ratio(counts, np.repeat(confusion.truth[:, None], counts.shape[1], axis=1))
    names = [_short(one.name) for one in legend.classes]
    cell = 0.6 if len(names) <= _MOST_NUMBERED else 0.2
    figure = _figure(3.5 + cell * counts.shape[1], 2.5 + cell * len(names))
    axes = figure.add_subplot()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    size = 9 if len(names) <= _MOST_NUMBERED else 6
    across = names if nothing is None else [*names, nothing]
    texts = [
        *axes.set_xticks(range(len(across)), across, rotation=60, ha="right", rotation_mode="anchor", fontsize=size),
        *axes.set_yticks(range(len(names)), names, fontsize=size),
    ]
    _plain([tick.label1 for tick in texts])
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    axes.set_title("Share of each label's pixels", fontsize=11)
    if len(names) <= _MOST_NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                ink = "white" if share > 0.5 else "black"
                axes.text(column, row, _told(share), ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(picture, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class Sample:
    """A window of an image with its labels and what a network makes of it."""

    title: str
    image: NDArray[np.uint8]
    """(rows, cols, 3)."""
    labels: NDArray[np.uint8]
    """Channel numbers (rows, cols), 255 for none."""
    prediction: NDArray[np.uint8]
    """The same."""


def samples_png(samples: Sequence[Sample], legend: Legend) -> bytes:
    """Windows below each other: image, labels, prediction; the legend at the bottom."""
    from matplotlib.patches import Patch

    colours = np.full((256, 3), 128, dtype=np.uint8)
    colours[: len(legend)] = [one.rgb for one in legend.classes]
    figure = _figure(9, 3.1 * len(samples) + 0.6)
    grid = figure.subplots(len(samples), 3, squeeze=False)
    for sample, row in zip(samples, grid, strict=True):
        pictures = (sample.image, colours[sample.labels], colours[sample.prediction])
        for axes, picture, title in zip(row, pictures, (sample.title, "labels", "prediction"), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            _plain([axes.set_title(title, fontsize=8)])
    patches = [Patch(color=one.colour, label=_short(one.name)) for one in legend.classes]
    shown = figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
    _plain(shown.get_texts())
    return _png(figure)


def curves_png(losses: Sequence[Sequence[float]], looks: Sequence[Look]) -> bytes:
    """The loss of every step, stage after stage, and mean IU and pixel accuracy at every look at the val split."""
    figure = _figure(8, 5)
    above, below = figure.subplots(2, 1, sharex=True)
    begins = np.concatenate([[0], np.cumsum([len(stage) for stage in losses])])
    for number, stage in enumerate(losses):
        steps = begins[number] + np.arange(1, len(stage) + 1)
        above.plot(steps, stage, linewidth=0.4, color="0.7")
        width = max(1, len(stage) // 50)
        if stage:
            smooth = np.convolve(stage, np.ones(width) / width, "valid")
            above.plot(steps[width - 1 :], smooth, color=f"C{number}", label=f"stage {number + 1}")
    above.set_ylabel("loss")
    if len(losses) > 1:
        above.legend(fontsize=8)
    at = [begins[look.stage] + look.step for look in looks]
    below.plot(at, [look.mean_iu for look in looks], marker="o", markersize=3, label="mean IU")
    below.plot(at, [look.pixel_accuracy for look in looks], marker="o", markersize=3, label="pixel accuracy")
    below.set(xlabel="step", ylabel="val split", ylim=(0, 1))
    below.legend(fontsize=8)
    return _png(figure)


def _told(share: float) -> str:
    """A share in two digits that says 0 and 1 only where they are exact.

    >>> [_told(share) for share in (0, 0.001, 0.994, 0.9999, 1)]
    ['0', '<.01', '.99', '>.99', '1']
    """
    if share in (0, 1):
        return str(int(share))
    return "<.01" if share < 0.01 else ">.99" if share > 0.995 else f"{share:.2f}".removeprefix("0")


def _short(name: str) -> str:
    """A class name as a label: one line, cut where it is long."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(texts: "list[Text]") -> None:
    """A dollar sign in a name is no formula."""
    for text in texts:
        text.set_parse_math(False)


def _png(figure: "Figure") -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it in the picture
        figure.savefig(data, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return data.getvalue()
