"""VGG16's convolutions out of an HDF5 file as Keras writes it."""

from pathlib import Path

import h5py
import numpy as np
import torch

from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.foreign import recognise
from fcn_batch.pipeline.network.start import start_from
from tests.errors import refuses
from tests.models import tiny_architecture

BLOCKS = (2, 2, 3, 3, 3)


def _write(path: Path, network: Fcn, blocks: tuple[int, ...] = BLOCKS) -> None:
    """The trunk of `network` as Keras would store it, for images in the order blue, green, red."""
    convolutions = iter([layer for layer in network.trunk.modules() if isinstance(layer, torch.nn.Conv2d)])
    with h5py.File(path, "w") as file:
        for block, count in enumerate(blocks, start=1):
            for number in range(count):
                layer = next(convolutions)
                weight, bias = layer.weight.detach(), layer.bias
                assert bias is not None
                place = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
                file[f"{place}/0"] = (weight.flip(1) if weight.shape[1] == 3 else weight).permute(2, 3, 1, 0).numpy()
                file[f"{place}/1"] = bias.detach().numpy()
        file["dsn1/vars/0"] = np.ones((1, 1, 4, 1), np.float32)
        file["steps"] = 7


def test_a_training_starts_from_keras_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, ours = (Fcn(tiny_architecture(), 3, 2) for _ in range(2))
    _write(tmp_path / "vgg.h5", theirs)
    assert start_from(ours, tmp_path / "vgg.h5") == ["fc6", "fc7", "score", "score_pool3", "score_pool4"]
    image = torch.randn(1, 3, 64, 64)
    for found, wanted in zip(ours.trunk(image), theirs.trunk(image), strict=True):
        assert torch.equal(found, wanted)
    assert recognise(read_tensors(tmp_path / "vgg.h5")).pixels == "caffe"


def test_other_blocks_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "vgg.h5", Fcn(tiny_architecture(), 3, 2), (3, 2, 3, 3, 2))
    with refuses("weights-unknown", path=tmp_path / "vgg.h5", names="block1/layers/conv2d_2/vars/0"):
        recognise(read_tensors(tmp_path / "vgg.h5"))


def test_damaged_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "vgg.h5"
    _write(path, Fcn(tiny_architecture(), 3, 2))
    path.write_bytes(path.read_bytes()[:3000])
    with refuses("checkpoint-damaged", path=path):
        read_tensors(path)
    with h5py.File(path, "w") as file:
        file["names"] = "none"
    with refuses("checkpoint-empty", path=path):
        read_tensors(path)
