"""Networks filled from other networks: stage by stage, and for other bands."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.start import grow, widen
from tests.models import tiny_architecture, tiny_network


@pytest.mark.parametrize(
    ("trunk", "upsampling"), [("vgg16", "bilinear"), ("alexnet", "learned"), ("efficientnet_lite0", "bilinear")]
)
def test_a_finer_network_goes_on_from_the_coarser_one(trunk: str, upsampling: Any) -> None:
    """Batch norms and their counters too."""
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


def test_a_weight_of_other_bands_cannot_be_widened() -> None:
    with pytest.raises(ValueError, match="4"):
        widen(torch.ones(8, 4, 3, 3), 5)
