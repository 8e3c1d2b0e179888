"""How sure a network is of each pixel: from its scores to two bytes, on the device. No rasters, no stores."""

import torch

SCALE = 250
"""What a probability of 1 is stored as; 255 stands where there is no data."""
PLANES = 2
"""Planes for each pixel: the largest probability, and the margin."""
_PIECE = 2**20
"""Pixels to work on at once: what is held beside the scores stays small, however large a tile is."""


def confidence_planes(scores: torch.Tensor, *, probabilities: bool = False) -> torch.Tensor:
    """(classes, rows, cols), floats of any kind, to (2, rows, cols), uint8: probability and margin times SCALE.

    With `probabilities`, the scores are these already: the network ends in a softmax, and a second one would make it
    less sure than it is.

    The first is the largest softmax probability, the second how far the next one lies below it. Where a score is not
    a finite number both are 0: nothing is sure. The bits of a pixel do not depend on those around it.
    """
    rows = max(1, _PIECE // max(1, scores.shape[2]))
    pieces = (piece.float().contiguous() for piece in scores.split(rows, dim=1))
    if probabilities:  # whose softmax they are
        pieces = (piece.clamp_min(torch.finfo(torch.float32).tiny).log() for piece in pieces)
    return torch.cat([_planes(piece) for piece in pieces], dim=1)


def confidence_bytes(classes: int, pixels: int) -> int:
    """Bytes that `confidence_planes` takes beside the scores and for what it gives."""
    return 4 * (classes + 6) * min(pixels, _PIECE) + PLANES * pixels


def _planes(scores: torch.Tensor) -> torch.Tensor:
    """`confidence_planes` of float32, from the two largest scores s1 and s2.

    ::

        p = 1 / sum of exp(s - s1)      the largest probability: its own exponential is 1
        p * (1 - exp(s2 - s1))          without the second largest, which is p * exp(s2 - s1)

    One class after the other: sorting them at every pixel takes several times as long.
    """
    best, second = scores[0], torch.full_like(scores[0], -torch.inf)
    for one in scores[1:]:
        second = torch.maximum(second, torch.minimum(best, one))
        best = torch.maximum(best, one)
    total = torch.zeros_like(best)
    for one in scores:
        total += torch.exp(one - best)
    probability = 1 / total
    margin = probability * (1 - torch.exp(second - best))
    return torch.stack([probability, margin]).mul_(SCALE).round_().nan_to_num_(0).to(torch.uint8)
