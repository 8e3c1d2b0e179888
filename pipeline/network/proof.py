"""The word that a network's maps deserve, and the proof of it.

    exact             all calls are recorded and each has a known, finite reach: the map follows by arithmetic
    exact (tested)    recorded whole, and all that is not known looks near by: how far was found by trying, with NaN
                      and with numbers, and windows equalled the whole on images made to break that
    windows           everything else: the map is the blend of a fixed grid of windows, by definition

A probe alone proves nothing: it follows NaN, which a network may hide, and sees no branch that its images do not take.
So what cannot be recorded is `windows`, whatever a probe says of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.model_card import Exactness
from fcn_batch.pipeline.network.capture import NotStreamableError, capture
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.probe import Grid, probe
from fcn_batch.pipeline.network.stream import Program, RowStream
from fcn_batch.pipeline.network.trial import agreement_of, forward, noise, try_out

_MOST_DIFFERENCE = 1e-3
"""Share of the largest score: far above rounding, far below what pixels that are not seen change."""
_CORE = 64
_SEED = 1411
_PLACES = 3
"""Windows that are compared, of each image."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A word for the maps of a network, and the grid that goes with it."""

    exactness: Exactness
    grid: Grid
    """Stride, phase and halo; of windows, the side that it accepts and no halo."""
    why: str = ""
    """The reason why it is no better; empty when it is exact."""
    probabilities: bool = False
    """True when the scores are probabilities."""


def prove(network: nn.Module, bands: int) -> Proof:
    """Record a network, try it, and say how exact its maps can be. ModelError when it does not work at all."""
    side = try_out(network, bands).side
    return replace(_proof(network, bands, side), probabilities=_gives_probabilities(network, bands, side))


def _gives_probabilities(network: nn.Module, bands: int, side: int) -> bool:
    """Return whether the scores of all classes are from 0 to 1 and sum to 1, on as many images as leave no doubt."""
    random = torch.Generator().manual_seed(_SEED)
    tried = [image for _, image in images(network, bands, Size(side, side))]
    tried += [factor * noise(network, (bands, side, side), random) for factor in (0.1, 1.0, 3.0, 10.0, 30.0)]
    for image in tried:
        scores = forward(network, image)[0].float()
        sums = scores.sum(dim=0)
        if len(scores) < 2 or bool((scores < 0).any()) or float((sums - 1).abs().max()) > _MOST_DIFFERENCE:
            return False
    return True


def _proof(network: nn.Module, bands: int, side: int) -> Proof:
    windows = Grid(side, 0, None)
    try:
        graph = capture(network, bands)
    except NotStreamableError as error:
        why = error.obstacles[0] + (f" and {len(error.obstacles) - 1} more" if len(error.obstacles) > 1 else "")
        if not error.local:
            return Proof("windows", windows, why)
        grid = probe(network, bands, finite=True)
        if grid.halo is None:
            return Proof("windows", windows, f"{why}: no halo was found that is enough")
        problem = _unlike_whole(network, bands, grid.stride, grid.halo)
        return Proof("windows", windows, f"{why}: {problem}") if problem else Proof("exact (tested)", grid, why)
    problem = _unlike_recorded(network, graph, bands, side)
    return Proof("windows", windows, problem) if problem else Proof("exact", probe(network, bands))


def images(network: nn.Module, bands: int, size: Size) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield images that show what a network hides on noise of one brightness: (1, bands, rows, cols)."""
    shape = (bands, size.height, size.width)
    plain = noise(network, shape)
    halves = plain.clone()
    halves[..., size.width // 2 :] = 0.01 * halves[..., size.width // 2 :] - 2
    pixel = torch.zeros_like(plain)
    pixel[..., size.height // 2, size.width // 3] = 100
    yield "noise", plain
    yield "bright noise", 100 * plain + 50
    yield "a dark half", halves
    yield "one bright pixel", pixel
    yield "a constant", torch.full_like(plain, -1.5)


def _unlike_recorded(network: nn.Module, graph: Graph, bands: int, side: int) -> str:
    """Return where a network differs from its recording, or from itself; empty when it does not.

    It was recorded at one size and called once: what it makes of its image's size, of its brightness in Python, or of
    earlier calls, stands in the recording as a number.
    """
    side = round_up(side, graph.stride)
    for size in (Size(side, side), Size(2 * side, side)):
        for name, image in images(network, bands, size):
            program = Program(graph, image.device, image.dtype, (size.height, size.width))
            recorded = RowStream(program).push(image, last=True)
            assert recorded is not None, "a whole image gives scores"
            try:
                once, again = forward(network, image)[0], forward(network, image)[0]
            except ModelError:
                if size.height == side:
                    raise
                return "it takes images of one size only"
            if not torch.equal(once, again):
                return "it gives other scores when it is called again: it is random, or keeps something"
            if agreement_of(once, recorded[0]).difference > _MOST_DIFFERENCE:
                what = f"on {name} of {size.height} x {size.width} px it differs from what was recorded of it"
                return f"{what}: its image's size enters, its brightness, or earlier calls"
    return ""


def _unlike_whole(network: nn.Module, bands: int, stride: int, halo: int) -> str:
    """Return where windows with their halo differ from the whole image; empty when they do not."""
    core = round_up(_CORE, stride)
    side = 2 * halo + core + 2 * stride
    thin = round_up(try_out(network, bands).side, stride)
    random = torch.Generator().manual_seed(_SEED)
    for size in (Size(side, thin), Size(thin, side)):
        for name, image in images(network, bands, size):
            whole = forward(network, image)[0]
            for _ in range(_PLACES):
                row, col = (
                    int(torch.randint(max(length - core, 0) // stride + 1, (1,), generator=random)) * stride
                    for length in (size.height, size.width)
                )
                inner = Window(row, col, core, core).clipped(size)
                read = inner.padded(halo).clipped(size)
                part = forward(network, image[(..., *read.slices())])[0][(slice(None), *inner.slices(read))]
                found = agreement_of(whole[(slice(None), *inner.slices())], part)
                if found.difference > _MOST_DIFFERENCE:
                    return f"on {name}, windows with a halo of {halo} px differ from the whole image"
    return ""
