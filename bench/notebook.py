"""Run the notebook of the documentation and keep what it printed and drew.

``python -m bench.notebook`` runs `docs/notebook.ipynb` in a folder of its own (extra `docs`, and `demo` for the image).
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def run(path: Path) -> None:
    """Execute all cells and write the notebook back; nbclient's error when a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random ones would change with every run
    nbformat.write(notebook, path)


if __name__ == "__main__":
    run(NOTEBOOK)
    sys.stdout.write(f"{NOTEBOOK}\n")
