"""The raster that runs of the real program are interrupted at: two lanes of many small blocks."""

from pathlib import Path

from tests.models import save_tiny_model
from tests.runs import run_program, scene, small_block_program


def undisturbed(folder: Path, rows: int) -> Path:
    """Make `a.tif`, of two blocks for each 128 rows, a model and, in `reference`, the outputs of an undisturbed run."""
    scene(folder / "a.tif", rows, 250)
    save_tiny_model(folder / "tiny.safetensors", fc_kernel=1)
    result = run_program(command(folder, folder / "reference"))
    assert result.returncode == 0, result.stderr
    return folder


def command(base: Path, out: Path, *options: str) -> list[str]:
    """Make the map of `a.tif` in `out`; segments are hardly higher than a halo, so that there are many."""
    start = small_block_program(base, halos=1)
    words = [*start, "segment", base / "a.tif", "-m", base / "tiny.safetensors", "-o", out, "--threads", 1, *options]
    return [str(word) for word in words]
