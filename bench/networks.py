"""The models that are measured, and how the other systems load what fcn-batch loads.

The FCN-8s models and torchvision's fcn_resnet50 have random weights (seeded): how fast a network is does not
depend on what it learned. Labels are compared with the trained model that comes with the package.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec, ModelCard
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.weights import load_model, save_model
from fcn_batch.workflows.learning.models import find_model

CLASSES = 21
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BANDS = tuple(Band(name=n, mean=0.5, std=0.25) for n in ("red", "green", "blue"))
_GSD = 10.0


@dataclass(frozen=True, slots=True)
class Network:
    """A network as any system can use it."""

    module: nn.Module
    """(n, bands, rows, cols) to scores of the same size; channels last."""
    stride: int
    """Inputs are padded to multiples of this."""
    spec: InputSpec
    classes: int


def save_fcn(path: Path, width: float) -> Path:
    """Write an FCN-8s with `width` of VGG16's channels: He's start in every layer, the score layers too."""
    torch.manual_seed(0)
    wide = Architecture(width=width, fc_channels=round(4096 * width))
    network = Fcn(wide, len(_BANDS), CLASSES)
    for name, module in network.named_modules():
        if name.startswith("score") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    card = ModelCard(
        name=path.stem,
        version="1",
        summary="Random weights, for measurements",
        architecture=wide,
        stride=network.stride,
        halo=network.halo,
        input=InputSpec(bands=_BANDS, gsd_m=_GSD),
        legend=Legend(classes=tuple(_class(k) for k in range(CLASSES))),
    )
    save_model(path, network, card)
    return path


def _class(number: int) -> ClassInfo:
    return ClassInfo(id=number, name=f"class {number}", colour=f"#{40 + 10 * number:02x}{255 - 10 * number:02x}60")


_TOML = f"""\
name = "{{name}}"
version = "1"
summary = "Random weights, for measurements"
factory = "{{factory}}"
weights = "{{name}}.safetensors"
none = {{none}}

[arguments]
{{arguments}}

[input]
gsd_m = {_GSD}
bands = [{", ".join(f'{{{{ name = "{b.name}", mean = {b.mean}, std = {b.std} }}}}' for b in _BANDS)}]

"""


def save_resnet(path: Path) -> Path:
    """Write torchvision's fcn_resnet50 (random weights) as a TOML model and its weights beside it."""
    from torchvision.models.segmentation import fcn_resnet50

    torch.manual_seed(0)
    network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    names = {"name": "fcn_resnet50", "factory": "torchvision.models.segmentation:fcn_resnet50"}
    none = '["weights", "weights_backbone"]'
    return _save_toml(path, network, CLASSES, **names, none=none, arguments=f"num_classes = {CLASSES}")


def save_empty(path: Path) -> Path:
    """Write a network that hardly computes: one weight for each band and class."""
    torch.manual_seed(0)
    network = nn.Conv2d(len(_BANDS), 2, 1)
    arguments = f"in_channels = {len(_BANDS)}\nout_channels = 2\nkernel_size = 1"
    return _save_toml(path, network, 2, name="empty", factory="torch.nn:Conv2d", none="[]", arguments=arguments)


def _save_toml(path: Path, network: nn.Module, classes: int, **said: str) -> Path:
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(weights, path.with_name(f"{said['name']}.safetensors"))
    known = [_class(k) for k in range(classes)]
    tables = [f'[[classes]]\nid = {c.id}\nname = "{c.name}"\ncolour = "{c.colour}"\n' for c in known]
    path.write_text(_TOML.format(**said) + "".join(tables), "utf-8")
    return path


def load_network(model: str, precision: str = "fp32", device: str = "cpu") -> Network:
    """The network of a model's name or file, ready to predict."""
    file, made = load_model(find_model(model).path)
    module = made.eval().to(device, DTYPES[precision]).to(memory_format=torch.channels_last)
    return Network(module, file.card.stride, file.card.input, len(file.card.legend))


@torch.inference_mode()
def plain_forward(network: Network, image: torch.Tensor) -> torch.Tensor:
    """Class numbers of a normalised image (1, bands, rows, cols), padded with 0 to multiples of the stride."""
    rows, cols = image.shape[-2:]
    padded = functional.pad(image, (0, -cols % network.stride, 0, -rows % network.stride))
    weight = next(network.module.parameters())
    x = padded.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
    best: torch.Tensor = network.module(x)[..., :rows, :cols].argmax(1)
    return best


def mflop_per_pixel(model: str, side: int = 512) -> float:
    """Floating-point operations of a forward pass per pixel of its input, in millions, counted from the layers."""
    from torch.utils.flop_counter import FlopCounterMode

    network = load_network(model)
    module = network.module.to("meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(torch.empty(1, len(network.spec.bands), side, side, device="meta"))
    return float(counter.get_total_flops()) / side**2 / 1e6


def export_onnx(model: str, path: Path, side: int) -> Path:
    """Write probabilities of an image of values 0 to 1, (1, bands, side, side), as ONNX with GeoDeep's metadata."""
    import onnx

    network = load_network(model)
    example = (torch.zeros(1, len(network.spec.bands), side, side),)
    torch.onnx.export(_Probabilities(network), example, str(path), dynamo=True, input_names=["image"])
    made = onnx.load(str(path), load_external_data=False)
    names = {str(k): f"class {k}" for k in range(network.classes)}
    facts = {
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps(names),
        "resolution": str(100 * _GSD),  # cm
        "tiles_overlap": "25",
        "seg_thresh": "0.0",
        "seg_small_segment": "0",
    }
    onnx.helper.set_model_props(made, facts)
    onnx.save(made, str(path))
    return path


class _Probabilities(nn.Module):
    """What GeoDeep feeds in (values over 255) to what it wants out, normalised as the other systems' input is."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        spec = network.spec
        self.inner = network.module
        self.gain = 255 / spec.full_scale
        self.register_buffer("mean", torch.tensor([b.mean for b in spec.bands])[:, None, None])
        self.register_buffer("deviation", torch.tensor([b.std for b in spec.bands])[:, None, None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.inner((image * self.gain - self.mean) / self.deviation)
        return scores.softmax(1)
