"""Networks filled from other networks: stage by stage, and for other bands."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.surgery import grow, widen
from tests.models import tiny_architecture, tiny_network


@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
@pytest.mark.parametrize("trunk", ["vgg16", "alexnet"])
def test_a_finer_network_goes_on_from_the_coarser_one(trunk: str, upsampling: Any) -> None:
    changes: dict[str, Any] = {"trunk": trunk, "upsampling": upsampling}
    coarser = tiny_network(tiny_architecture(stride=32, **changes))
    for stride, score, up in ((16, "score_pool4", "up_score"), (8, "score_pool3", "up_pool4")):
        finer = Fcn(tiny_architecture(stride=stride, **changes), 3, 6).eval()
        kept = grow(coarser, finer)
        ups = [f"{up}.weight", "up_final.weight"] if upsampling == "learned" else []
        assert sorted(kept) == sorted([f"{score}.weight", f"{score}.bias", *ups])
        state = finer.state_dict()
        assert all(
            torch.equal(tensor, state[name]) for name, tensor in coarser.state_dict().items() if "up_f" not in name
        )
        assert not state[f"{score}.weight"].any()
        assert finer(torch.randn(1, 3, 64, 64)).any(), "it does not start from nothing"
        coarser = finer


def test_batch_norms_and_their_counters_are_copied() -> None:
    changes: dict[str, Any] = {"trunk": "efficientnet_lite0", "fc_channels": 0}
    coarser = tiny_network(tiny_architecture(stride=32, **changes))
    finer = Fcn(tiny_architecture(stride=16, **changes), 3, 6)
    grow(coarser, finer)
    assert int(finer.state_dict()["trunk.stem.norm.num_batches_tracked"]) == 1
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(finer.eval().trunk(x)[2], coarser.trunk(x)[2])


@pytest.mark.parametrize(
    ("coarser", "finer", "match"),
    [
        (
            {"stride": 32, "fc_kernel": 3},
            {"stride": 16, "fc_kernel": 5},
            r"fc6\.weight is \(16, 32, 3, 3\).*\(16, 32, 5, 5\)",
        ),
        ({"stride": 32, "trunk": "alexnet"}, {"stride": 16}, r"trunk\.features\.0\.weight is \(4, 3, 11, 11\)"),
        ({"stride": 32}, {"stride": 16, "fc_channels": 0}, r"has no fc6\.weight"),
        ({"stride": 8}, {"stride": 16}, "FCN-16s is coarser than FCN-8s"),
    ],
    ids=str,
)
def test_networks_that_do_not_fit(coarser: dict[str, Any], finer: dict[str, Any], match: str) -> None:
    networks = [Fcn(tiny_architecture(**changes), 3, 6) for changes in (coarser, finer)]
    before = {name: tensor.clone() for name, tensor in networks[1].state_dict().items()}
    with pytest.raises(ValueError, match=match):
        grow(*networks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks[1].state_dict().items())


WEIGHT = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_further_bands_get_the_mean_of_the_three() -> None:
    wide = widen(WEIGHT, 5)
    assert wide.shape == (8, 5, 5, 5)
    assert torch.equal(wide[:, :3], WEIGHT)
    assert torch.equal(wide[:, 3], wide[:, 4])
    assert (wide[:, 3] - (WEIGHT[:, 0] + WEIGHT[:, 1] + WEIGHT[:, 2]) / 3).abs().max() < 1e-15
    assert torch.equal(widen(WEIGHT, 3), WEIGHT)
    assert widen(WEIGHT.half(), 4).dtype == torch.float16


@pytest.mark.parametrize("bands", [1, 2])
def test_a_grey_image_gives_the_response_of_its_rgb(bands: int) -> None:
    grey = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    expected = functional.conv2d(grey.repeat(1, 3, 1, 1), WEIGHT)
    found = functional.conv2d(grey.repeat(1, bands, 1, 1), widen(WEIGHT, bands))
    assert (found - expected).abs().max() <= 1e-12
    assert expected.any()


@pytest.mark.parametrize(("shape", "bands"), [((8, 4, 3, 3), 5), ((8, 3), 5), ((8, 3, 3, 3), 0)])
def test_what_cannot_be_widened(shape: tuple[int, ...], bands: int) -> None:
    with pytest.raises(ValueError, match="got"):
        widen(torch.ones(shape), bands)
