"""A network on noise: which images it takes, what it returns, and whether windows give what the whole image gives.

The network may be anybody's, so whatever goes wrong in it becomes a ModelError of one line.
"""

from dataclasses import dataclass

import torch
from torch import nn

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.stream import Program, RowStream

_SIDES = (32, 64, 96, 160, 224, 128, 480)
_CORE = 64
_LARGEST_SQUARE = 1536
_SEED = 1411


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a first image of noise."""

    side: int
    """A side, in pixels, that the network accepts."""
    classes: int
    """Score channels."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores through a window against those of the whole image."""

    pixels: int
    """Pixels compared."""
    difference: float
    """Largest difference, as a share of the largest score."""
    classes: int
    """Pixels whose best class is another one."""


def try_out(network: nn.Module, bands: int) -> Trial:
    """The smallest usual side that `network` accepts, and how many classes it scores.

    ModelError when it takes none of them, gives scores of another size, or scores that are not numbers.
    """
    network.eval()
    refusal = None
    for side in _SIDES:
        try:
            scores = forward(network, noise(network, (bands, side, side)))
        except ModelError as error:
            refusal = refusal or error
            continue
        if scores.shape[-2:] != (side, side):
            refusal = refusal or ModelError(
                "network-output",
                "the network gives {found} scores for an image of {size} pixels; let it pad its convolutions and "
                "upsample its scores to the input's size",
                found=" x ".join(map(str, scores.shape[-2:])),
                size=f"{side} x {side}",
            )
        elif not torch.isfinite(scores).all():
            raise ModelError(
                "weights-broken", "the network's scores of an image of noise are NaN or infinite; get its weights again"
            )
        else:
            return Trial(side, scores.shape[1])
    assert refusal is not None
    raise refusal


def compare_window(network: nn.Module, bands: int, stride: int, halo: int) -> Agreement:
    """How well a core at a random place, seen with its halo, agrees with the same pixels of the whole image.

    The image is as small as can be for a window that is smaller; of a network that looks far, two thin ones.
    """
    network.eval()
    random = torch.Generator().manual_seed(_SEED)
    core = round_up(_CORE, stride)
    side = 2 * halo + core + 2 * stride
    thin = round_up(try_out(network, bands).side, stride)
    sizes = [Size(side, side)] if side <= _LARGEST_SQUARE else [Size(side, thin), Size(thin, side)]
    found = []
    for size in sizes:
        places = [max(length - core, 0) // stride + 1 for length in (size.height, size.width)]
        row, col = (int(torch.randint(count, (1,), generator=random)) * stride for count in places)
        inner = Window(row, col, core, core).clipped(size)
        found.append(_compared(network, noise(network, (bands, size.height, size.width), random), inner, halo))
    return Agreement(
        sum(part.pixels for part in found),
        max(part.difference for part in found),
        sum(part.classes for part in found),
    )


def compare_stream(network: nn.Module, graph: Graph, bands: int) -> Agreement:
    """How well the scores of rows that are streamed agree with those of the whole image.

    The image is several strips high, and the strips are as low as can be.
    """
    network.eval()
    rows = graph.warm_up(graph.stride) + 2 * graph.stride
    image = noise(network, (bands, rows, round_up(try_out(network, bands).side, graph.stride)))
    whole = forward(network, image)[0]
    stream = RowStream(Program(graph, image.device, image.dtype, (graph.stride, image.shape[3])))
    strips = image.split(graph.stride, dim=2)
    parts = [stream.push(strip, last=index == len(strips) - 1) for index, strip in enumerate(strips)]
    return agreement_of(whole, torch.cat([part for part in parts if part is not None], dim=2)[0])


def _compared(network: nn.Module, image: torch.Tensor, inner: Window, halo: int) -> Agreement:
    read = inner.padded(halo).clipped(Size(*image.shape[-2:]))
    whole = forward(network, image)[0][(slice(None), *inner.slices())]
    part = forward(network, image[(..., *read.slices())])[0][(slice(None), *inner.slices(read))]
    return agreement_of(whole, part)


def agreement_of(whole: torch.Tensor, part: torch.Tensor) -> Agreement:
    """Compare two score maps, (classes, rows, cols)."""
    scale = whole.abs().max().clamp(min=torch.finfo(whole.dtype).tiny)
    return Agreement(
        pixels=whole[0].numel(),
        difference=float((whole - part).abs().max() / scale),
        classes=int((whole.argmax(dim=0) != part.argmax(dim=0)).sum()),
    )


@torch.inference_mode()
def forward(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Scores (n, classes, rows, cols) of `image`; ModelError when the network raises or returns anything else."""
    try:
        scores = network(image)
    except ModelError:
        raise
    except Exception as error:  # the network is the user's: anything may happen in it
        bands, rows, cols = image.shape[1:]
        why = " ".join(str(error).split())[:300] or "no reason given"
        raise ModelError(
            "network-failed",
            "the network refuses an image of {bands} bands and {rows} x {cols} pixels: {kind}: {why}",
            bands=bands,
            rows=rows,
            cols=cols,
            kind=type(error).__name__,
            why=why,
        ) from error
    if not isinstance(scores, torch.Tensor) or scores.ndim != 4:
        what = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ModelError(
            "network-output",
            "the network returns {found}; let it return one tensor (n, classes, rows, cols)",
            found=what,
        )
    return scores


def noise(network: nn.Module, shape: tuple[int, int, int], random: torch.Generator | None = None) -> torch.Tensor:
    """One image of noise where the network's weights are, the same each time unless `random` is given."""
    random = random or torch.Generator().manual_seed(_SEED)
    like = next(network.parameters(), torch.empty(0))
    return torch.randn((1, *shape), generator=random).to(like.device, like.dtype)
