"""Networks filled from others: the stages FCN-32s, 16s, 8s, and other people's weights as the start of a training."""

from pathlib import Path

import torch

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.model_card import Architecture, InputSpec
from fcn_batch.pipeline.core.scalings import input_spec
from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.fcn import Fcn, FcnNetwork
from fcn_batch.pipeline.network.foreign import FIRST, Foreign, Tensors, recognise
from fcn_batch.pipeline.network.weights import read_card

_TRUNKS = ("trunk", "backbone")
_RGB = 3


def grow(coarser: Fcn, finer: Fcn) -> list[str]:
    """Fill `finer` from `coarser`, as FCN-16s is from FCN-32s and FCN-8s from that (CVPR 2015, section 4.2).

    Every tensor of the same name is copied, so the new score layers keep their start at zero and training goes on
    from the coarser net's scores. The last upsampling is by another factor and keeps its start too. Returns the names
    of the tensors that keep their own start. Both have the same architecture but for the stride.
    """
    given = {name: t for name, t in coarser.state_dict().items() if not name.startswith("up_final.")}
    return list(finer.load_state_dict(given, strict=False).missing_keys)


def start_from(network: FcnNetwork, path: Path, *, spec: InputSpec | None = None) -> list[str]:
    """Fill what fits of `network` from the foreign checkpoint or model file at `path`.

    The trunk must fit; fc6, fc7 and score layers are taken where their shapes do. A first convolution for red, green
    and blue is widened for further bands, which get the mean of the three. With `spec`, the first convolution is
    also adapted to how the network's pixels are scaled, if that is not how those of the file were, so that it gives
    the same features. Returns the names of the parts that keep their own start, sorted. ModelError when the trunk does
    not fit, or is zero or not finite; then the network is as it was.
    """
    source = recognise(read_tensors(path))
    theirs = dict(source.tensors)
    first = next((key for key in FIRST if key in theirs), None)
    wanted = network.state_dict()
    if first is None or first not in wanted:
        raise ModelError(
            "weights-other-trunk",
            "{path}: holds {kind}, whose trunk is not the network's; choose another trunk or file",
            path=path,
            kind=source.kind,
        )
    card_spec, scales = _of_own(source)
    if spec is not None:
        theirs |= _rescaled(theirs, first, card_spec or input_spec(source.pixels, 1.0), spec)
    if theirs[first].ndim == 4 and theirs[first].shape[1] == _RGB and network.bands != _RGB:
        theirs[first] = widen(theirs[first], network.bands)
    _unscale(network, theirs, scales)
    taken, kept = _fitting(path, wanted, theirs)
    network.load_state_dict(taken, strict=False)
    return kept


def _of_own(source: Foreign) -> tuple[InputSpec | None, tuple[float, float]]:
    """What the card of a model file of our own says of its pixels and skips."""
    if source.path.suffix != ".safetensors":
        return None, (1.0, 1.0)
    try:
        card = read_card(source.path).card
    except ModelError:  # bare tensors
        return None, (1.0, 1.0)
    scales = card.architecture.skip_scales if isinstance(card.architecture, Architecture) else (1.0, 1.0)
    return card.input, scales


def _unscale(network: FcnNetwork, theirs: Tensors, scales: tuple[float, float]) -> None:
    """Weights of the skips for maps that the network multiplies by its own factors."""
    if isinstance(network.architecture, Architecture):
        pairs = zip(("score_pool4", "score_pool3"), scales, network.architecture.skip_scales, strict=True)
        for part, before, now in pairs:
            if before != now and f"{part}.weight" in theirs:
                theirs[f"{part}.weight"] = theirs[f"{part}.weight"] * (before / now)


def _fitting(path: Path, wanted: Tensors, theirs: Tensors) -> tuple[Tensors, list[str]]:
    """What of `theirs` is taken, whole parts only, and the parts that it does not fill."""
    parts: dict[str, list[str]] = {}
    for key in wanted:
        parts.setdefault(_part(key), []).append(key)
    taken: Tensors = {}
    kept = []
    for part, keys in parts.items():
        problem = next(filter(None, (_problem(key, wanted[key], theirs.get(key)) for key in keys)), None)
        if problem is None:
            taken |= {key: theirs[key] for key in keys if key in theirs}
        elif part in _TRUNKS:
            raise ModelError(
                "weights-misfit",
                "{path}: does not fit the network's trunk: {problem}; choose another trunk or file",
                path=path,
                problem=problem,
            )
        else:
            kept.append(part)
    return taken, sorted(kept)


def _part(key: str) -> str:
    """A layer's name; all of the trunk is one part, and of torchvision's head the score layer is one."""
    name = key.partition(".")[0]
    return name if name != "classifier" else ("score" if key.startswith("classifier.4.") else "head")


def _problem(key: str, wanted: torch.Tensor, found: torch.Tensor | None) -> str | None:
    if key.endswith("num_batches_tracked"):
        return None
    if found is None:
        return f"{key} is missing"
    if found.shape != wanted.shape:
        return f"{key} has the shape {tuple(found.shape)}, the network's has {tuple(wanted.shape)}"
    if not found.isfinite().all():
        return f"{key} holds NaN or infinity"
    if key.endswith("weight") and not found.any():
        return f"all of {key} is zero: it was never trained"
    return None


def _rescaled(theirs: Tensors, first: str, before: InputSpec, now: InputSpec) -> Tensors:
    """The first convolution for pixels scaled as `now` says: the same output but where it looks beyond the image.

    In terms of a value as a share of full scale, v, theirs saw (v - mean) / std and the network sees the same of its
    own mean and std. What the means' difference gives goes into the constant; a band beyond the first three adds
    nothing at its mean.
    """
    weight, constant = theirs[first], theirs.get(FIRST[first])
    alike = [(band.mean, band.std) for band in before.bands] == [(band.mean, band.std) for band in now.bands]
    if alike or constant is None or weight.ndim != 4 or weight.shape[1] != len(before.bands):
        return {}
    plain = weight / _column(weight, [band.std for band in before.bands])
    added = -(plain * _column(weight, [band.mean for band in before.bands])).sum(dim=(1, 2, 3))
    if weight.shape[1] == _RGB:
        plain = widen(plain, len(now.bands))
    if plain.shape[1] != len(now.bands):
        return {}
    seen = slice(weight.shape[1])
    added = added + (plain * _column(weight, [band.mean for band in now.bands]))[:, seen].sum(dim=(1, 2, 3))
    sign = 1 if FIRST[first].endswith("bias") else -1  # a norm subtracts its running mean
    return {first: plain * _column(weight, [band.std for band in now.bands]), FIRST[first]: constant + sign * added}


def _column(like: torch.Tensor, values: list[float]) -> torch.Tensor:
    """One value for each band of a convolution's weight."""
    return like.new_tensor(values).reshape(1, -1, 1, 1)


def widen(weight: torch.Tensor, bands: int) -> torch.Tensor:
    """The first convolution's weight (channels, 3, rows, cols) for images of `bands` bands, in the same dtype.

    With more than three bands, the first three keep their filters and every other gets the mean of the three, as the
    authors' RGB-D net does (nyud-fcn32s-color-d/solve.py). With one or two, each gets the mean times 3 / `bands`: an
    image whose bands are all alike, such as a grey one, gives the response that it gives as red, green and blue.
    ValueError when `weight` is not for three bands.
    """
    if weight.ndim != 4 or weight.shape[1] != _RGB:
        raise ValueError(f"a weight for red, green and blue is (channels, 3, rows, cols), got {tuple(weight.shape)}")
    mean = weight.mean(dim=1, keepdim=True)
    if bands < _RGB:
        return (mean * (_RGB / bands)).repeat(1, bands, 1, 1)
    return torch.cat([weight, mean.repeat(1, bands - _RGB, 1, 1)], dim=1)
