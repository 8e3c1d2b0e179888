"""`exact` cannot be fooled: networks that hide what they look at, and what a map of theirs is called and is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

from fcn_batch.pipeline.network.proof import prove
from fcn_batch.workflows.learning.models import check_model, describe_check
from tests.errors import refused
from tests.exact import assert_exact
from tests.models import UNET, save_factory_model
from tests.rasters import noise, write_raster
from tests.runs import fcn_batch, segmented, small_blocks

FIRST = "        fine = self.fine(x)\n"
UNPOOL = """        fine = self.fine(x)
        small, where = nn.functional.max_pool2d(fine, 4, return_indices=True)
        small = self.coarse[2](self.coarse[1](small))
        return self.score(torch.cat([fine, nn.functional.max_unpool2d(small, where, 4)], dim=1))
"""
LAST = "        return self.score(torch.cat([fine, self.up(self.coarse(fine))], dim=1))\n"


def with_first(*lines: str) -> str:
    """The U-Net, which first does something else to its image."""
    return UNET.replace(FIRST, "".join(f"        {line}\n" for line in lines) + FIRST)


EXACT = {
    "as it is": UNET,
    "NaN replaced": with_first("x = torch.nan_to_num(x)"),
    "compared with a sentinel": with_first("x = torch.where(x > -9999, x, 0)"),
    "infinity replaced": with_first("x = torch.where(torch.isfinite(x), x, 0.0)"),
    "the larger of two": with_first("x = torch.maximum(x, x.abs() * 0.1)"),
}
TESTED = {
    "unpooling by indices": UNET.replace(FIRST + LAST, UNPOOL),
    "pixels shuffled": with_first(
        "x = nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(torch.nan_to_num(x), 2), 2)"
    ),
}
WINDOWS = {
    "a branch on the maximum": with_first("if x.max() > 1.5:", "    x = x / 1.5"),
    "a branch on the mean": with_first("x = x if float(x.mean()) < 0 else x - 1"),
    "normalised by the image": with_first("x = x - x.mean(dim=(2, 3), keepdim=True)"),
    "stretched by the image": with_first("x = x / x.amax()"),
    "sorted": with_first("x = torch.sort(x, dim=2).values"),
    "rolled": with_first("x = torch.roll(x, 7, dims=2)"),
    "sampled on a grid": with_first(
        "grid = nn.functional.affine_grid(torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), list(x.shape), False)",
        "x = nn.functional.grid_sample(x, grid, align_corners=False)",
    ),
    "its size enters": with_first("x = x * (x.shape[2] / 500)"),
    "it counts its calls": with_first("self.calls = getattr(self, 'calls', 0) + 1", "x = x * self.calls"),
    "it remembers": with_first("self.coarse[2].running_mean.mul_(0.9).add_(0.1 * x.mean())"),
    "it is random": with_first("x = x + torch.rand_like(x)"),
    "out of sight": with_first("x = torch.from_numpy(x.numpy() * 1.0)"),
    "turned round": with_first("x = x.flip(2)"),
}


def network_of(code: str) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "written"}
    exec(code, namespace)  # noqa: S102 - our own text, above
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = namespace["make_unet"](3, 4)
    return made.eval()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        *((code, "exact") for code in EXACT.values()),
        *((code, "exact (tested)") for code in TESTED.values()),
        *((code, "windows") for code in WINDOWS.values()),
    ],
    ids=[*EXACT, *TESTED, *WINDOWS],
)
def test_the_word(code: str, word: str) -> None:
    proof = prove(network_of(code), 3)
    assert proof.exactness == word, proof.why
    assert (proof.why == "") == (word == "exact")
    assert (proof.grid.halo is None) == (word == "windows")


def halves(path: Path, height: int = 200, width: int = 330) -> Path:
    """Bright noise, dark on the right, with one pixel that is brightest: what a tile does not see, it cannot know."""
    values: NDArray[np.uint8] = noise(3, height, width)
    values[:, :, width // 2 :] = values[:, :, width // 2 :] // 20
    values[:, height - 3, 5] = 255
    return write_raster(path, values, photometric="RGB")


@pytest.mark.parametrize("kind", [*EXACT, *TESTED])
def test_not_one_label_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    small_blocks(monkeypatch)
    model = save_factory_model(tmp_path / "unet.toml", code={**EXACT, **TESTED}[kind])
    word = "exact" if kind in EXACT else "exact (tested)"
    for tile in (None, 32):
        made = assert_exact(halves(tmp_path / "a.tif"), model, tile=tile, output=tmp_path / str(tile))
        assert made.report["exactness"] == word
        assert made.report["plan"]["cut"]["way"] == ("stream" if tile is None and kind in EXACT else "tiles")


@pytest.mark.parametrize("kind", ["a branch on the maximum", "its size enters", "sorted"])
def test_windows_are_computed_by_the_network_and_not_by_its_recording(tmp_path: Path, kind: str) -> None:
    """Of an image that fits into one window, the map is what the network gives for it."""
    model = save_factory_model(tmp_path / "unet.toml", code=WINDOWS[kind])
    made = assert_exact(halves(tmp_path / "a.tif", 64, 96), model, output=tmp_path)
    assert made.report["exactness"] == "windows"


@pytest.mark.parametrize("kind", ["a branch on the maximum", "its size enters", "sorted"])
def test_windows_are_called_so_wherever_the_map_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    small_blocks(monkeypatch)
    model = save_factory_model(tmp_path / "unet.toml", code=WINDOWS[kind])
    result = segmented(halves(tmp_path / "a.tif"), "-m", model)
    assert "windows: " in result.stderr
    report = json.loads((tmp_path / "a.run.json").read_text())
    assert (report["exactness"], report["plan"]["cut"]["way"]) == ("windows", "blend")
    attributes = json.loads((tmp_path / "a.classes.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["fcn:exactness"] == "windows"
    item = json.loads((tmp_path / "a.stac.json").read_text())
    assert ": windows, " in item["properties"]["processing:lineage"]
    assert dict(describe_check(check_model(str(model))))["result"].startswith("windows: ")


def test_a_window_does_not_depend_on_who_computes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows lie on a grid of the whole raster: blocks decide nothing."""
    model = save_factory_model(tmp_path / "unet.toml", code=WINDOWS["a branch on the maximum"])
    raster, made = halves(tmp_path / "a.tif"), []
    for chunk in (128, 2048):
        small_blocks(monkeypatch, chunk)
        segmented(raster, "-m", model, "-o", tmp_path / str(chunk), "--tile", 64)
        made.append(json.loads((tmp_path / str(chunk) / "a.run.json").read_text())["classes"])
    assert made[0] == made[1]


SOFTMAX = UNET.replace("return self.score(torch.cat(", "return torch.softmax(self.score(torch.cat(").replace(
    "dim=1))\n\n\ndef make_unet", "dim=1)), dim=1)\n\n\ndef make_unet"
)


def test_a_softmax_is_not_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How sure a network is does not depend on whether it ends in a softmax; in strips, tiles and windows."""
    small_blocks(monkeypatch)
    raster, planes = halves(tmp_path / "a.tif"), {}
    for name, code in (("logits", UNET), ("softmax", SOFTMAX)):
        model = save_factory_model(tmp_path / name / "unet.toml", code=code)
        assert prove(network_of(code), 3).probabilities == (name == "softmax")
        for way in ((), ("--tile", 64)):
            folder = tmp_path / name / str(len(way))
            segmented(raster, "-m", model, "-o", folder, "--confidence", *way)
            stored = zarr.open_group(folder / "a.confidence.zarr", mode="r")
            planes[name, way] = np.stack([np.asarray(stored[one]).astype(int) for one in ("confidence", "margin")])
    for way in ((), ("--tile", 64)):
        assert np.abs(planes["logits", way] - planes["softmax", way]).max() <= 1
    assert planes["logits", ()].mean() > 0


def test_one_channel_is_refused(tmp_path: Path) -> None:
    model = save_factory_model(tmp_path / "unet.toml", classes=1)
    refused(fcn_batch("segment", halves(tmp_path / "a.tif"), "-m", model), "one-class", path=model)


def test_the_report_says_what_was_padded(tmp_path: Path) -> None:
    model = save_factory_model(tmp_path / "unet.toml")
    segmented(halves(tmp_path / "a.tif", 81, 103), "-m", model)
    assert json.loads((tmp_path / "a.run.json").read_text())["padded"] == {"rows": 3, "columns": 1}
