"""Blocks at which processes die are found and named, or left out; all others are done as if they were not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.network.factory import read_factory
from tests.models import UNET, save_factory_model
from tests.runs import BLOCK, class_map, run_program, scene, small_block_program

TRAP = UNET.replace(
    "        fine = self.fine(x)\n",
    """        from os import environ, getpid, kill

        poison = torch.tensor([(1.0 - 0.392) / 0.225, -0.392 / 0.225, (1.0 - 0.392) / 0.225])
        if ((x - poison.view(1, 3, 1, 1)).abs().amax(1) < 1e-3).any() and "DISARMED" not in environ:
            kill(getpid(), 9)
        fine = self.fine(x)
""",
)
"""A network that ends its process when it sees a pixel of pure magenta."""
Map = NDArray[np.uint8]
MIDDLE = 4
"""Of the nine blocks."""
DEADLY = 9


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a raster of nine blocks, magenta in the middle, and a trapped model."""
    folder = tmp_path_factory.mktemp("bait")
    image = scene(folder / "a.tif")
    with rasterio.open(image, "r+") as dataset:
        dataset.write(np.array([255, 0, 255], np.uint8).reshape(3, 1, 1), window=((190, 191), (200, 201)))
    model = read_factory(save_factory_model(folder / "trap.toml", code=TRAP, module="trapped"))
    # as it would be without its trap, which cannot be recorded: tiles with a halo, and no windows that share pixels
    proof = {"exactness": "exact (tested)", "grid": {"stride": 4, "phase": 0, "halo": 8}, "why": "a trap"}
    stored = {"sha256": model.sha256, "probe": 2, "torch": torch.__version__, "probabilities": False, **proof}
    model.grid_path.write_text(json.dumps(stored))
    return folder


def command(bait: Path, out: Path, *options: str) -> list[object]:
    start = small_block_program(bait)
    return [*start, "segment", bait / "a.tif", "-m", bait / "trap.toml", "-o", out, "--tile", BLOCK, *options]


@pytest.fixture(scope="module")
def expected(bait: Path, tmp_path_factory: pytest.TempPathFactory) -> Map:
    """What the network makes of it when the trap is not armed, but no data in the middle block."""
    out = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISARMED", "yes")
        result = run_program(command(bait, out))
    assert result.returncode == 0, result.stderr
    values = class_map(out, "a")
    values[BLOCK : 2 * BLOCK, BLOCK : 2 * BLOCK] = 255
    return values


def test_a_deadly_block_is_left_out_and_all_others_are_right(bait: Path, tmp_path: Path, expected: Map) -> None:
    result = run_program(command(bait, tmp_path, "--on-error", "mask", "--workers", "2"))
    assert result.returncode == 3, result.stderr
    assert np.array_equal(class_map(tmp_path, "a"), expected)
    assert "Traceback" not in result.stderr
    report = json.loads((tmp_path / "a.run.json").read_bytes())
    assert report["unreadable"] == [{"row": BLOCK, "col": BLOCK, "height": BLOCK, "width": BLOCK}]


@pytest.mark.faults
def test_a_deadly_block_is_named(bait: Path, tmp_path: Path, expected: Map) -> None:
    assert run_program(command(bait, tmp_path)).returncode == -DEADLY
    assert (tmp_path / "a.partial" / "claims" / f"block-{MIDDLE:09d}").exists()
    result = run_program(command(bait, tmp_path, "--workers", "1"))
    assert result.returncode == 6
    assert f"died at block {MIDDLE} (rows 128..255, columns 128..255)" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    done = {receipt.block for receipt in Journal(tmp_path / "a.partial").receipts()}
    assert MIDDLE not in done

    result = run_program(command(bait, tmp_path, "--workers", "1", "--on-error", "mask"))
    assert result.returncode == 3, result.stderr
    assert np.array_equal(class_map(tmp_path, "a"), expected)
    report = json.loads((tmp_path / "a.run.json").read_bytes())
    assert report["timing"]["blocks_done_by_earlier_runs"] == len(done)
    assert run_program(command(bait, tmp_path, "--on-error", "mask")).returncode == 3, "also when it is complete"
    assert run_program(command(bait, tmp_path)).returncode == 6, "it has holes"
