"""Small networks with random weights, and model files of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec, ModelCard, TorchvisionFcn
from fcn_batch.pipeline.network.fcn import DilatedFcn, Fcn, FcnNetwork
from fcn_batch.pipeline.network.weights import save_model


def tiny_architecture(**changes: Any) -> Architecture:
    """An FCN-8s with a sixteenth of its trunk's channels, if that has several widths, and `changes` to it."""
    width = 0.0625 if changes.get("trunk", "vgg16") in ("vgg16", "alexnet") else 1.0
    return Architecture(**{"width": width, "fc_kernel": 3, "fc_channels": 16, **changes})


def tiny_network(
    architecture: Architecture | None = None,
    *,
    bands: int = 3,
    classes: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Fcn:
    """A network whose every weight is random, score layers too; every class wins somewhere in an image of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Fcn(architecture or tiny_architecture(), bands, classes)
        _shake(network)
    return network.to(dtype)


def tiny_dilated(
    name: Literal["fcn_resnet50", "fcn_resnet101"] = "fcn_resnet50",
    *,
    bands: int = 3,
    classes: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> DilatedFcn:
    """torchvision's FCN, which has one width, with random weights as those of `tiny_network`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DilatedFcn(TorchvisionFcn(name=name), bands, classes)
        _shake(network)
    return network.to(dtype)


def scaled(
    values: NDArray[Any], valid: NDArray[np.bool_], spec: InputSpec, dtype: Any = np.float32
) -> NDArray[np.floating]:
    """What a network of `spec` sees of a raster's numbers, computed in float64."""
    mean, std = (np.array([getattr(band, k) for band in spec.bands])[:, None, None] for k in ("mean", "std"))
    known = np.where(valid, values, 0).astype(np.float64)
    out: NDArray[np.floating] = np.where(valid, (known / spec.full_scale - mean) / std, 0).astype(dtype)
    return out


def _shake(network: FcnNetwork) -> None:
    """Draw the weights that start at 0 or all alike, and give batch norms what they would have seen in training."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter is network.score.weight or name.startswith("score") or name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            elif name.startswith("up_"):
                parameter.add_(0.03 * torch.randn_like(parameter))
        if norms:
            for norm in norms:
                norm.momentum = 1.0
            network.train()(torch.randn(2, network.bands, 96, 96))
        _balance(network.eval(), network.bands)


def _balance(network: FcnNetwork, bands: int) -> None:
    """Bring the scores of every class to mean 0 and deviation 1 over an image of noise, more or less.

    Rounded, so that the last bits of a forward pass (they depend on the number of threads) do not show.
    """
    scores = network(torch.randn(1, bands, 160, 160))[0].flatten(1)
    deviation = scores.std(dim=1).round(decimals=2).clamp(min=0.01)
    layers = [m for name, m in network.named_modules() if name.startswith("score") or m is network.score]
    for layer in layers:
        assert isinstance(layer, torch.nn.Conv2d)
        assert layer.bias is not None
        layer.weight /= deviation[:, None, None, None]
        layer.bias /= deviation
    learned = isinstance(network, Fcn) and network.architecture.upsampling == "learned"
    if not learned:  # only then no class's scores move another's
        scores = network(torch.randn(1, bands, 160, 160))[0].flatten(1)
        assert network.score.bias is not None
        network.score.bias -= scores.mean(dim=1).round(decimals=2)


def tiny_card(
    network: FcnNetwork, *, bands: tuple[str, ...] = ("red", "green", "blue"), gsd_m: float = 7000.0, **changes: Any
) -> ModelCard:
    """The card of `network` for images like `tests.rasters.noise`; class ids are 0, 10, 20, …"""
    classes = tuple(
        ClassInfo(id=10 * k, name=f"class {k}", colour=f"#{20 * k % 256:02x}{255 - 9 * k % 256:02x}40")
        for k in range(network.classes)
    )
    values = {
        "name": "tiny",
        "version": "1",
        "summary": "Random weights, for tests",
        "architecture": network.architecture,
        "stride": network.stride,
        "halo": network.halo,
        "phase": network.phase,
        "input": InputSpec(bands=tuple(Band(name=name, mean=0.392, std=0.225) for name in bands), gsd_m=gsd_m),
        "legend": Legend(classes=classes),
    }
    return ModelCard(**{**values, **changes})


def save_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    classes: int = 6,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    input_upsampling: Literal[1, 2, 4] = 1,
    fc_kernel: int = 3,
    gsd_m: float = 7000.0,
) -> Path:
    """Write a tiny model to `path`."""
    architecture = tiny_architecture(input_upsampling=input_upsampling, fc_kernel=fc_kernel)
    network = tiny_network(architecture, bands=len(bands), classes=classes, seed=seed)
    save_model(path, network, tiny_card(network, bands=bands, gsd_m=gsd_m))
    return path


UNET = '''"""A small U-Net."""

import torch
from torch import nn


class UNet(nn.Module):
    def __init__(self, bands, classes):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(bands, 8, 3, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=4)
        self.score = nn.Conv2d(16, classes, 1)

    def forward(self, x):
        fine = self.fine(x)
        return self.score(torch.cat([fine, self.up(self.coarse(fine))], dim=1))


def make_unet(bands, classes):
    return UNet(bands, classes)


def make_bad(bands, classes):
    return bands / 0


def make_text(bands, classes):
    return "a network"
'''
"""Source of a module with a factory: stride 4, halo 8."""


def save_factory_model(toml: Path, *, classes: int = 4, code: str = UNET, module: str = "nets", seed: int = 0) -> Path:
    """Write a U-Net's module, its random weights and its TOML file into the folder of `toml`."""
    toml.parent.mkdir(parents=True, exist_ok=True)
    toml.with_name(f"{module.rpartition('.')[2]}.py").write_text(code)
    namespace: dict[str, Any] = {"__name__": "written"}
    exec(UNET, namespace)  # noqa: S102 - our own text, above
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = namespace["make_unet"](3, classes).state_dict()
    safetensors.torch.save_file(state, toml.with_suffix(".safetensors"))
    arguments = {"bands": 3, "classes": classes}
    write_description(toml, bands=3, classes=classes, arguments=arguments, target=f"{module}:make_unet")
    return toml


def write_description(
    toml: Path,
    *,
    bands: int,
    classes: int,
    arguments: dict[str, Any],
    target: str = "nets:make_unet",
    none: Sequence[str] = (),
) -> None:
    """Write the TOML file of a model for images like `tests.rasters.noise`."""
    names = ("red", "green", "blue", "infrared")[:bands]
    lines = [
        f'name = "{toml.stem}"\nversion = "1"\nsummary = "Random weights, for tests"\nfactory = "{target}"',
        f'weights = "{toml.stem}.safetensors"\nnone = {list(none)}\nbf16_disagreement = 0.0025\n\n[arguments]',
        *(f"{key} = {value!r}" for key, value in arguments.items()),
        "\n[input]\ngsd_m = 0.5\nbands = [",
        *(f'  {{ name = "{name}", mean = 0.392, std = 0.225 }},' for name in names),
        "]",
        *(f'\n[[classes]]\nid = {k}\nname = "class {k}"\ncolour = "#{20 * k:02x}8040"' for k in range(classes)),
    ]
    toml.write_text("\n".join(lines) + "\n")
