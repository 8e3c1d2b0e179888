"""One measured job in a process of its own; the last line printed is a JSON object.

``python -m bench.worker monai RASTER MODEL OUTPUT`` and so on; `bench.run` writes these command lines.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.networks import (
    DTYPES,
    export_onnx,
    load_network,
    mflop_per_pixel,
    plain_forward,
    save_empty,
    save_fcn,
    save_resnet,
)
from bench.peers import OVERLAP, SIDE, run_monai, run_torchgeo, run_whole
from fcn_batch.pipeline.network.layers import Convolution

_PACKAGES = ("fcn-batch", "torch", "torchvision", "rasterio", "monai", "torchgeo", "geodeep", "onnxruntime")
_ATTEMPTS = 5


def _plain(o: argparse.Namespace) -> dict[str, Any]:
    """Seconds and CPU seconds of one pass over a square of noise; the first is not counted."""
    network = load_network(o.model, o.precision, o.device)
    image = torch.randn(1, len(network.spec.bands), o.side, o.side).to(o.device, DTYPES[o.precision])
    image = image.contiguous(memory_format=torch.channels_last)
    times, cpu = [], []
    for _ in range(o.repeats + 1):
        wall, busy = time.perf_counter(), time.process_time()
        plain_forward(network, image)[0, 0, 0].item()  # waits for the device
        times.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - busy)
    return {"inner_s": median(times[1:]), "cpu_s": median(cpu[1:]), "passes": 1.0, "seconds": times}


def _rate(o: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of a square matrix product, and of a 3x3 convolution as torch runs it and with packed weights."""
    dtype, side, channels = DTYPES[o.precision], o.side, 512
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    rows = max(16, side // 32)
    image = torch.randn(1, channels, rows, rows).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = layer.weight, layer.bias
    assert bias is not None, "made with one"
    plain = Convolution(weight, bias, (1, 1), 1, (1, 1), 1)
    packed = plain.prepared(torch.device("cpu"), dtype, image.shape)  # pads no rows
    convolution = 2 * 9 * channels**2 * rows
    return {
        "matmul": 2 * side**3 / _best(lambda: a @ b) / 1e9,
        "conv": convolution * rows / _best(lambda: layer(image)) / 1e9,
        "packed": convolution * (rows - 2) / _best(lambda: packed([image])) / 1e9,
    }


def _best(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_ATTEMPTS + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _whole(o: argparse.Namespace) -> dict[str, Any]:
    return _inner(run_whole(o.raster, o.output, load_network(o.model, o.precision, o.device)))


def _monai(o: argparse.Namespace) -> dict[str, Any]:
    import monai.inferers  # noqa: F401 - loaded before the clock starts

    return _inner(run_monai(o.raster, o.output, load_network(o.model, o.precision), o.roi, o.overlap))


def _torchgeo(o: argparse.Namespace) -> dict[str, Any]:
    import torchgeo.datasets
    import torchgeo.samplers  # noqa: F401 - loaded before the clock starts

    return _inner(run_torchgeo(o.raster, o.output, load_network(o.model, o.precision), o.roi, o.overlap))


def _inner(measured: tuple[float, float]) -> dict[str, Any]:
    return {"inner_s": measured[0], "passes": measured[1]}


def _model(o: argparse.Namespace) -> dict[str, Any]:
    if o.output.suffix == ".toml":
        path = save_empty(o.output) if o.output.stem == "empty" else save_resnet(o.output)
    else:
        path = save_fcn(o.output, o.width)
    return {"path": str(path)}


def _flops(o: argparse.Namespace) -> dict[str, Any]:
    return {"mflop_per_px": mflop_per_pixel(o.model)}


def _export(o: argparse.Namespace) -> dict[str, Any]:
    return {"path": str(export_onnx(o.model, o.output, SIDE))}


def _machine(_: argparse.Namespace) -> dict[str, Any]:
    cpu = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "CPU": f"{cpu[0] if cpu else platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "Instruction set": torch.backends.cpu.get_cpu_capability() + _bf16_unit(),
        "Memory": f"{memory[0] / 2**20:.0f} GiB" if memory else "not known",
        "GPU": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "System": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "Threads": f"{torch.get_num_threads()} of the network in every system",
        "Versions": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
    }


def _bf16_unit() -> str:
    flags = next((set(line.split()) for line in _lines("/proc/cpuinfo") if line.startswith("flags")), set())
    units = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    return f" ({', '.join(units)})" if units else " (no bf16 arithmetic)"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(name: str, work: Callable[[argparse.Namespace], dict[str, Any]], *places: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        for place in places:
            command.add_argument(place, type=str if place == "model" else Path)
        command.add_argument("--precision", choices=DTYPES, default="fp32")
        command.add_argument("--device", default="cpu")
        command.add_argument("--side", type=int, default=4096)
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--roi", type=int, default=SIDE)
        command.add_argument("--overlap", type=int, default=OVERLAP)
        return command

    add("plain", _plain, "model")
    add("rate", _rate)
    for name, work in {"whole": _whole, "monai": _monai, "torchgeo": _torchgeo}.items():
        add(name, work, "raster", "model", "output")
    add("model", _model, "output").add_argument("--width", type=float, default=1.0)
    add("flops", _flops, "model")
    add("export", _export, "model", "output")
    add("machine", _machine)
    return parser


def main(arguments: Iterable[str] | None = None) -> None:
    """Do one job and print what it measured."""
    options = _parser().parse_args(None if arguments is None else list(arguments))
    with torch.no_grad():
        told = options.work(options)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
