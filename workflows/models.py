"""Find models: those that ship with the package by name, any other by path."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from fcn_batch.pipeline.errors import ModelError
from fcn_batch.pipeline.weights import ModelFile, load_model, read_card


def embedded() -> Iterator[ModelFile]:
    """The models that ship with the package, by name."""
    for path in sorted(_folder().glob("*.safetensors")):
        yield read_card(path)


def find_model(name_or_path: str) -> ModelFile:
    """The embedded model of that name, or the model file at that path; ModelError when there is none."""
    named = _folder() / f"{name_or_path}.safetensors"
    if "/" not in name_or_path and named.is_file():
        return read_card(named)
    path = Path(name_or_path)
    if path.suffix != ".safetensors" and not path.exists():
        known = ", ".join(p.stem for p in sorted(_folder().glob("*.safetensors")))
        raise ModelError(f"{name_or_path}: no embedded model has this name ({known}), and no file either")
    return read_card(path.absolute())


def _folder() -> Path:
    return Path(str(files("fcn_batch.configs"))) / "models"


def describe_model(file: ModelFile) -> list[tuple[str, str]]:
    """What `fcn-batch model info` prints: label and value, one pair a line."""
    card, net, spec = file.card, file.card.architecture, file.card.input
    reach = load_model(file.path)[1].reach
    bands = ", ".join(band.name for band in spec.bands)
    pairs = [
        ("model", f"{card.name} {card.version}: {card.summary}"),
        ("file", str(file.path)),
        ("sha256", file.sha256),
        ("network", f"FCN-{net.stride}s, {net.trunk} x {net.width:g}, input enlarged {net.input_upsampling} times"),
        ("stride", f"{card.stride} px, halo {card.halo} px, receptive field {reach.field} px"),
        ("bands", f"{bands} ({spec.dtype}, white at {spec.full_scale:g})"),
        ("resolution", f"{spec.gsd_m:g} m per pixel"),
        *(("class", f"{c.id:3} {c.colour} {c.name}") for c in card.legend.classes),
        *(("data", f"{d.name}; {d.source}; licence: {d.licence}") for d in card.training),
    ]
    if card.scores is not None:
        scores = card.scores
        numbers = f"pixel accuracy {scores.pixel_accuracy:.3f}, mean IU {scores.mean_iu:.3f}"
        pairs += [
            ("scores", f"{numbers} ({scores.split})"),
            *(("IU", f"{iu:.3f} {name}") for name, iu in scores.class_iu.items()),
            ("baseline", scores.baseline),
        ]
    return pairs
