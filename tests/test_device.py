"""Devices that are there and that are not, what they can compute in, and how much memory is free."""

import ctypes
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from fcn_batch.pipeline.core.plan import Precision
from fcn_batch.pipeline.network import device as device_module
from fcn_batch.pipeline.network.device import (
    check_precision,
    choose_device,
    cuda_devices,
    describe_device,
    fast_precision,
    free_memory,
    is_out_of_memory,
    torch_kind,
    torch_version,
)
from tests.errors import refuses

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_devices_that_are_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda:0", "mps")
    assert describe_device("cpu").split()[0] == torch.backends.cpu.get_cpu_capability()
    assert torch_version() == torch.__version__


@pytest.mark.parametrize("wanted", ["banana", "", "cuda:-1", "cuda:x", "cuda:99999999999999999999"])
def test_devices_nobody_knows(wanted: str) -> None:
    with refuses("device-unknown", value=wanted):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["meta", "xpu"])
def test_devices_that_are_not_supported(wanted: str) -> None:
    with refuses("device-unsupported", value=wanted):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["cuda:99", "cuda:128", "cuda:256"])  # torch takes the last two for -128 and 0
def test_gpus_that_are_not_there(wanted: str) -> None:
    shown = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with refuses("device-missing", value=wanted, found=shown):
        choose_device(wanted)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_no_apple_gpu() -> None:
    with refuses("device-missing", value="mps"):
        choose_device("mps")


def test_gpus_are_tried_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(wanted) for wanted in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [choose_device(wanted) for wanted in ("auto", "mps")] == ["mps", "mps"]


def test_kinds_of_devices() -> None:
    assert [torch_kind(device) for device in ("cpu", "cuda:0", "cuda:13", "mps")] == ["cpu", "cuda", "cuda", "mps"]


def test_gpus_are_counted_where_they_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for usable, count in ((True, 3), (False, 0)):  # a driver that is too old shows GPUs, too
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        assert cuda_devices() == count


# --- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "fp32"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),  # emulates it
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16"),
    ],
)
def test_the_fast_precision_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: Precision
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(device_module, "multiplies_bf16", lambda: True)
    assert fast_precision("cpu") == precision
    assert fast_precision("mps") == "fp32"
    told = describe_device("cpu").split()[1:]
    assert told == [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)][:1]


def test_nothing_is_fast_that_onednn_may_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 on a newer CPU: what --precision refuses is not taken unasked either."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(device_module, "multiplies_bf16", lambda: False)
    assert fast_precision("cpu") == "fp32"
    assert not device_module.has_fast_bf16()


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_fast_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, precision: Precision) -> None:
    def is_supported(*, including_emulation: bool) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert fast_precision("cuda:0") == precision


def test_precisions_that_devices_cannot_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "cuda:0", "mps"):
        check_precision("fp32", device)
    check_precision("bf16", "cuda:0")
    monkeypatch.setattr(device_module, "multiplies_bf16", lambda: True)
    check_precision("bf16", "cpu")
    monkeypatch.setattr(device_module, "multiplies_bf16", lambda: False)
    with refuses("precision-unsupported", value="bf16"):
        check_precision("bf16", "cpu")
    check_precision("fp16", "cuda:0")
    with refuses("precision-unsupported", value="fp16"):
        check_precision("fp16", "cpu")
    halves: tuple[Precision, ...] = ("bf16", "fp16")
    for half in halves:
        with refuses("precision-unsupported", value=half):
            check_precision(half, "mps")


# --- memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def limit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "memory.max"
    monkeypatch.setattr(device_module, "_CGROUP_LIMIT", path)
    return path


def test_free_memory_is_the_machines_without_a_limit(limit_file: Path) -> None:
    for text in (None, "max\n", ""):
        if text is not None:
            limit_file.write_text(text)
        assert free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_free_memory_is_what_the_group_may_still_take(limit_file: Path) -> None:
    used = psutil.Process().memory_info().rss
    limit_file.write_text(f"{used + 10**8}\n")
    assert free_memory("cpu") == pytest.approx(10**8, abs=5 * 10**7)
    limit_file.write_text(f"{used // 2}\n")
    assert free_memory("cpu") == 0
    limit_file.write_text(f"{2**62}\n")
    assert free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_free_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {"cuda:1": (123, 456)}[device])
    assert free_memory("cuda:1") == 123


_PAGES = """
import resource
import torch
from fcn_batch.pipeline.network.device import keep_pages

if {keep}:
    keep_pages()
faults = 0
for turn in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty({numbers}).fill_(1)
    if turn >= 5:
        faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_freed_pages_are_kept_for_the_next_strip() -> None:
    """Without it, every tensor of more than 32 MiB has its pages mapped anew."""

    def faults(*, keep: bool) -> int:
        code = _PAGES.format(keep=keep, numbers=2**24)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(ended.stdout)

    huge_pages = 10 * 2**26 // 2**21
    anew = faults(keep=False)
    assert anew >= huge_pages
    assert min(faults(keep=True) for _ in range(3)) < anew / 2, "a kernel short of memory takes some pages away"


def test_another_c_library_has_no_such_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise OSError("libc.so.6: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    device_module.keep_pages()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    device_module.keep_pages()


def test_how_it_is_said_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert is_out_of_memory(MemoryError()), "Python's and numpy's own"
    for other in (RuntimeError("expected 3 channels"), ValueError("memory")):
        assert not is_out_of_memory(other)


@pytest.mark.gpu
@GPU
def test_cuda_is_there() -> None:
    assert describe_device("cuda:0") == torch.cuda.get_device_name(0)
    assert 0 < free_memory("cuda:0") <= torch.cuda.get_device_properties(0).total_memory
