"""The pictures of docs/exactness.md: `python -m bench.pictures` computes and draws them; all numbers are measured.

How far a network looks is shown with a small FCN-8s of VGG16's geometry and random weights. What tiles do is shown with
the model that comes with the package, on a piece of the Blue Marble (needs the extra `demo`): the maps are made by the
program itself and compared with one forward pass over the whole image.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from bench.networks import load_network, plain_forward
from bench.scenes import write_land
from fcn_batch.pipeline.network.probe import Grid, probe
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.workflows.learning.models import find_model
from tests.models import tiny_architecture, tiny_network

FOLDER = Path(__file__).parents[1] / "docs" / "img"
MODEL = "landcover-world"
HEIGHT, WIDTH = 700, 1000
CORE, AROUND = 32, 320
"""Side of the core whose reach is drawn, and pixels drawn around it: a multiple of the stride."""
TILE, OVERLAP = 256, 64
WAYS = {
    f"tiles of {TILE} px, no halo": ["--tile", str(TILE), "--overlap", "0", "--blend", "none"],
    f"tiles of {TILE} px, {OVERLAP} px blended": ["--tile", str(TILE), "--overlap", str(OVERLAP), "--blend", "hann"],
    "rows streamed (the default)": [],
}
WRONG = "#d7191c"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    network = tiny_network(tiny_architecture(fc_kernel=7))
    draw_reach(looked_at(network), probe(network.float(), 3), FOLDER / "reach.png")
    with tempfile.TemporaryDirectory() as folder:
        raster = write_land(Path(folder, "land.tif"), HEIGHT, WIDTH)
        made = {name: segmented(raster, Path(folder, "maps"), options) for name, options in WAYS.items()}
        truth = whole(raster)
    draw_differences(truth, made, FOLDER / "ways.png")


def looked_at(network: torch.nn.Module) -> NDArray[np.float64]:
    """How much the scores of a core change with each pixel around it: gradients, summed over six images of noise."""
    side = CORE + 2 * AROUND
    network.double().eval()
    random = torch.Generator().manual_seed(0)
    total = torch.zeros(side, side, dtype=torch.float64)
    for _ in range(6):
        image = torch.randn(1, 3, side, side, dtype=torch.float64, generator=random).requires_grad_()
        core = network(image)[0, :, AROUND : AROUND + CORE, AROUND : AROUND + CORE]
        for scores in core:
            weights = torch.randn(scores.shape, dtype=torch.float64, generator=random)
            (gradient,) = torch.autograd.grad((scores * weights).sum(), image, retain_graph=True)
            total += gradient[0].abs().sum(0)
    return np.asarray(total.numpy())


def farthest(gradients: NDArray[np.float64]) -> int:
    """Pixels from the core to the farthest one with a gradient."""
    rows, cols = np.nonzero(gradients)
    ends = (AROUND - rows, AROUND - cols, rows - AROUND - CORE + 1, cols - AROUND - CORE + 1)
    return int(max(end.max() for end in ends))


def draw_reach(gradients: NDArray[np.float64], grid: Grid, path: Path) -> None:
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    end, halo = AROUND + CORE, grid.halo or 0
    shown = axes.imshow(
        np.where(gradients > 0, gradients / gradients.max(), np.nan),
        norm=LogNorm(1e-8, 1),
        cmap="viridis",
        extent=(-AROUND, end, end, -AROUND),
    )
    for far, colour, label in ((0, "white", f"core of {CORE} px"), (halo, "red", f"with a halo of {halo} px")):
        box = Rectangle((-far, -far), CORE + 2 * far, CORE + 2 * far, fill=False, edgecolor=colour, label=label)
        axes.add_patch(box)
    axes.legend(loc="upper right", facecolor="lightgrey", fontsize=8)
    axes.set_title(
        f"What a core looks at: gradients up to {farthest(gradients)} px beyond it\n"
        f"(stride {grid.stride}; the NaN probe finds a halo of {halo})",
        fontsize=10,
    )
    axes.set_xlabel("pixels")
    figure.colorbar(shown, label="gradient, of the largest")
    figure.savefig(path, dpi=80)


@torch.inference_mode()
def whole(raster: Path) -> NDArray[np.uint8]:
    """Class numbers of one forward pass."""
    network = load_network(MODEL)
    with rasterio.open(raster) as file:
        image = torch.from_numpy(file.read().astype(np.float32)) / network.spec.full_scale
    mean = torch.tensor([band.mean for band in network.spec.bands])[:, None, None]
    std = torch.tensor([band.std for band in network.spec.bands])[:, None, None]
    return np.asarray(plain_forward(network, ((image - mean) / std)[None])[0].numpy(), np.uint8)


def segmented(raster: Path, folder: Path, options: list[str]) -> NDArray[np.uint8]:
    """Class numbers of the map that `fcn-batch segment` makes with `options`."""
    command = [sys.executable, "-m", "fcn_batch", "segment", str(raster), "-m", MODEL, "-o", str(folder)]
    subprocess.run([*command, "-q", "--overwrite", "--precision", "fp32", *options], check=True, stdout=subprocess.PIPE)
    with rasterio.open(folder / f"{raster.stem}.classes.tif") as file:
        return np.asarray(file.read(1), np.uint8)  # ids of this model are 0, 1, 2, …


def draw_differences(truth: NDArray[np.uint8], made: dict[str, NDArray[np.uint8]], path: Path) -> None:
    colours = [one.colour for one in load_model(find_model(MODEL).path)[0].card.legend.classes]
    figure = Figure(figsize=(9, 6.9), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    _draw(axes[0], truth, colours, "the whole image in one pass")
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in np.linspace(0xB0, 0xF0, len(colours)).astype(int)]
    for axis, (name, classes) in zip(axes[1:], made.items(), strict=True):
        wrong = classes != truth
        title = f"{name}:\n{wrong.sum():,} of {wrong.size:,} pixels differ ({wrong.mean():.2%})"
        _draw(axis, np.where(_thicker(wrong), len(colours), truth), [*greys, WRONG], title)
    figure.savefig(path, dpi=85)


def _draw(axis: Axes, numbers: NDArray[np.integer[Any]], colours: list[str], title: str) -> None:
    axis.imshow(numbers, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


def _thicker(wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Each pixel with its neighbours, so that single ones show; the titles count before."""
    padded = np.pad(wrong, 1)
    parts = [padded[r : r + wrong.shape[0], c : c + wrong.shape[1]] for r in range(3) for c in range(3)]
    return np.asarray(np.logical_or.reduce(parts))


if __name__ == "__main__":
    main()
