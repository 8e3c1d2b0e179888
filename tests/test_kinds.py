"""Models of every kind of network, from the file to the map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_batch.pipeline.network.fcn import FcnNetwork
from fcn_batch.pipeline.network.weights import save_model
from fcn_batch.workflows.learning.models import check_model, describe_check, describe_model, find_model
from tests.exact import assert_exact
from tests.models import tiny_architecture, tiny_card, tiny_dilated, tiny_network
from tests.rasters import noise, write_raster
from tests.runs import small_blocks

KINDS: dict[str, dict[str, Any]] = {
    "shifted": {"shift": 3, "fc_kernel": 1},
    "alexnet": {"trunk": "alexnet", "fc_kernel": 6, "shift": 3, "skip_scales": (0.01, 0.0001)},
    "googlenet": {"trunk": "googlenet", "stride": 16, "fc_channels": 0},
    "efficientnet": {"trunk": "efficientnet_lite0", "fc_channels": 0},
    "dilated": {},
}
TOLD = {
    "shifted": ("FCN-8s, vgg16 x 0.0625, shifted by 3 px", "cells begin at 29 px"),
    "alexnet": (
        "alexnet x 0.0625, pool4 x 0.01 and pool3 x 0.0001, shifted by 3 px",
        "halo 224",
    ),
    "googlenet": ("FCN-16s, googlenet x 1, scored without fc6 and fc7", "halo 224 px"),
    "efficientnet": ("FCN-8s, efficientnet_lite0 x 1", "halo 480 px, receptive field 915 px"),
    "dilated": ("fcn_resnet50, as torchvision builds it", "8 px, halo 232 px, receptive field 451 px"),
}


def _saved(folder: Path, kind: str) -> tuple[Path, FcnNetwork]:
    network: FcnNetwork = (
        tiny_dilated() if kind == "dilated" else tiny_network(tiny_architecture(**KINDS[kind]), seed=3)
    )
    path = folder / "model.safetensors"
    save_model(path, network, tiny_card(network))
    return path, network


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.long] * (k == "dilated")) for k in KINDS])
def test_the_map_is_that_of_one_pass_over_the_whole_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    small_blocks(monkeypatch, chunk=512)
    model, _ = _saved(tmp_path, kind)
    made = assert_exact(write_raster(tmp_path / "a.tif", noise(3, 100, 70), photometric="RGB"), model)
    assert len(np.unique(made.classes)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_model_info(tmp_path: Path, kind: str) -> None:
    model, _ = _saved(tmp_path, kind)
    told = dict(describe_model(find_model(str(model))))
    network, stride = TOLD[kind]
    assert network in told["network"]
    assert stride in told["stride"]


@pytest.mark.parametrize("kind", ["shifted", "alexnet"])
def test_model_check(tmp_path: Path, kind: str) -> None:
    model, network = _saved(tmp_path, kind)
    check = check_model(str(model))
    assert (check.exactness, check.obstacles) == ("exact", [])
    assert check.found.phase == network.phase == 29
    assert check.streamed is not None
    assert check.streamed.classes == 0
    assert "29 px, as the card says" in dict(describe_check(check))["phase"]
