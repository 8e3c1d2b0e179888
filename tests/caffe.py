"""The authors' Caffe nets for tests: a writer of .caffemodel files, random small nets, and the original forward pass.

The forward pass is that of voc-fcn{32s,16s,8s,8s-atonce}/net.py, written down literally from a file's own blobs: a pad
of 100, pools that round up, fc6 without padding, transposed convolutions without padding, and crops.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Array = NDArray[Any]
Blobs = dict[str, list[Array]]
Variant = Literal["32s", "16s", "8s", "8s-atonce"]
Version = Literal["v1", "v2"]

STAGES = ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3))
MEAN_BGR = (104.00699, 116.66877, 122.67892)


# --- protobuf ------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """An unsigned number; negative ones as 64 bits in two's complement."""
    value %= 2**64
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A field that holds a number, or text, a message or packed values."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(values: Array, *, old: bool = False, packed: bool = True, double: bool = False) -> bytes:
    """A BlobProto, with the four axes of old files or a shape."""
    kind, number, wire = ("<f8", 8, 1) if double else ("<f4", 5, 5)
    raw = values.astype(kind).tobytes()
    size = np.dtype(kind).itemsize
    single = b"".join(varint(number << 3 | wire) + raw[k : k + size] for k in range(0, len(raw), size))
    data = field(number, raw) if packed else single
    if old:
        axes = (1,) * (4 - values.ndim) + values.shape
        return b"".join(field(k, n) for k, n in enumerate(axes, start=1)) + data
    dims = b"".join(varint(n) for n in values.shape)
    shape = field(1, dims) if packed else b"".join(field(1, n) for n in values.shape)
    return field(7, shape) + data


def layer(name: str, blobs: Iterable[bytes], version: Version = "v2") -> bytes:
    """A layer of a NetParameter, with the type, bottom and top that readers pass over."""
    if version == "v2":
        head = field(1, name.encode()) + field(2, b"Convolution") + field(3, b"data") + field(4, name.encode())
        return field(100, head + b"".join(field(7, b) for b in blobs) + field(106, field(1, 64)))
    head = field(2, b"data") + field(4, name.encode()) + field(5, 4)
    return field(2, head + b"".join(field(6, b) for b in blobs))


def caffemodel(path: Path, layers: Blobs, version: Version = "v2", **options: bool) -> Path:
    """Write the blobs as a NetParameter; `options` are those of `blob`."""
    parts = [field(1, b"FCN"), layer("relu1_1", [], version)]
    parts += [
        layer(name, [blob(b, old=version == "v1", **options) for b in blobs], version) for name, blobs in layers.items()
    ]
    path.write_bytes(b"".join(parts))
    return path


# --- nets ----------------------------------------------------------------------------------------------------


def bilinear(channels: int, kernel: int) -> Array:
    """The weight of a transposed convolution that interpolates, as surgery.py of the authors makes it."""
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(kernel) - centre) / factor
    weight = np.zeros((channels, channels, kernel, kernel))
    weight[range(channels), range(channels)] = np.outer(line, line)
    return weight


def random_net(
    variant: Variant, *, classes: int = 4, fc: int = 8, width: int = 16, seed: int = 0, bands: int = 3
) -> Blobs:
    """Blobs of a net with a `width`-th of VGG16's channels; all names are the authors'."""
    draw = np.random.default_rng(seed)
    net: Blobs = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        scale = np.sqrt(2 / (into * kernel**2))
        net[name] = [draw.normal(0, scale, (out, into, kernel, kernel)), draw.normal(0, 0.1, out)]

    into = bands
    for stage, channels, many in STAGES:
        for index in range(1, many + 1):
            conv(f"conv{stage}_{index}", channels // width, into, 3)
            into = channels // width
    conv("fc6", fc, into, 7)
    conv("fc7", fc, fc, 1)
    conv("score_fr", classes, fc, 1)
    if variant == "32s":
        net["upscore"] = [bilinear(classes, 64)]
        return net
    net["upscore2"] = [bilinear(classes, 4)]
    conv("score_pool4", classes, 512 // width, 1)
    if variant == "16s":
        net["upscore16"] = [bilinear(classes, 32)]
        return net
    net["upscore_pool4"] = [bilinear(classes, 4)]
    conv("score_pool3", classes, 256 // width, 1)
    net["upscore8"] = [bilinear(classes, 16)]
    if variant == "8s-atonce":
        net["scale_pool4"] = [np.full(512 // width, 0.01)]
        net["scale_pool3"] = [np.full(256 // width, 0.0001)]
    return net


def state_dict(net: Blobs, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """The same as pytorch-fcn names it; it keeps the factors of a net trained at once in its code."""
    parts = ("weight", "bias")
    return {
        f"{name}.{part}": torch.from_numpy(values).to(dtype)
        for name, blobs in net.items()
        if not name.startswith("scale_")
        for part, values in zip(parts, blobs, strict=False)
    }


def forward(net: Blobs, rgb: Array, mean_bgr: tuple[float, ...] = MEAN_BGR) -> torch.Tensor:
    """Scores (1, classes, rows, cols), float64, of an image (3, rows, cols) with values from 0 to 255."""
    blobs = {name: [torch.from_numpy(b.astype(np.float64)) for b in values] for name, values in net.items()}
    order = [2, 1, 0, *range(3, len(rgb))]
    x = torch.from_numpy(rgb.astype(np.float64)[order]) - torch.tensor(mean_bgr, dtype=torch.float64)[:, None, None]
    x, rows, cols = x[None], rgb.shape[1], rgb.shape[2]

    def conv(name: str, value: torch.Tensor, pad: int = 0) -> torch.Tensor:
        weight, bias = blobs[name]
        return functional.conv2d(value, weight, bias, padding=pad)

    def up(name: str, value: torch.Tensor) -> torch.Tensor:
        weight = blobs[name][0]
        return functional.conv_transpose2d(value, weight, stride=weight.shape[-1] // 2)

    def crop(value: torch.Tensor, like: tuple[int, int], offset: int) -> torch.Tensor:
        assert value.shape[2] >= offset + like[0]
        return value[:, :, offset : offset + like[0], offset : offset + like[1]]

    pools = {}
    for stage, _, many in STAGES:
        for index in range(1, many + 1):
            x = functional.relu(conv(f"conv{stage}_{index}", x, 100 if (stage, index) == (1, 1) else 1))
        x = pools[stage] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
    x = conv("score_fr", functional.relu(conv("fc7", functional.relu(conv("fc6", x)))))
    if "upscore" in net:
        return crop(up("upscore", x), (rows, cols), 19)
    for skip, stage, deeper, offset in (("score_pool4", 4, "upscore2", 5), ("score_pool3", 3, "upscore_pool4", 9)):
        if skip not in net:
            break
        x = up(deeper, x)
        scale = blobs.get(f"scale_pool{stage}")
        seen = pools[stage] if scale is None else pools[stage] * scale[0][None, :, None, None]
        x = x + crop(conv(skip, seen), (x.shape[2], x.shape[3]), offset)
    last, offset = ("upscore16", 27) if "upscore16" in net else ("upscore8", 31)
    return crop(up(last, x), (rows, cols), offset)
