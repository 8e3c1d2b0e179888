"""The notebook of the documentation: its cells run, and what it shows is what they print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xarray")
ROOT = Path(__file__).parent.parent
CELLS: list[dict[str, Any]] = json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_was_executed_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert "error" not in kinds
    assert "display_data" in kinds


def test_its_cells_run_and_print_what_it_shows(tmp_path: Path) -> None:
    script = "\n".join("".join(cell["source"]) for cell in CODE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = [output for cell in CODE for output in cell["outputs"] if output["output_type"] == "stream"]
    lines = "".join("".join(output["text"]) for output in shown).splitlines()
    # other processors round ties otherwise, so areas may differ in their last digits
    assert [re.sub(r"[\d,.]+", "", line).split() for line in done.stdout.splitlines()] == [
        re.sub(r"[\d,.]+", "", line).split() for line in lines
    ]
    assert "ok" in lines
