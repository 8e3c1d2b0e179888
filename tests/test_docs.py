"""Every code block of the README and of the pages in docs/ runs, in order, in a folder that holds `big_image.tif`."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from affine import Affine

from fcn_batch.pipeline.core.recipe import Polygons, Recipe
from fcn_batch.pipeline.core.splits import BlockSplit
from fcn_batch.pipeline.network.weights import ModelFile
from fcn_batch.workflows.doctor import EXTRAS
from fcn_batch.workflows.learning.models import embedded
from tests.rasters import noise, write_raster
from tests.slides import cells, pyramid

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OUTPUTS = ROOT / "docs" / "outputs.md"
PAGES = sorted(ROOT.glob("docs/**/*.md"))
DOCS = [README, *PAGES, ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?:<!-- (?P<why>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
RUN = {"bash", "python"}


def _blocks(*pages: Path) -> list[re.Match[str]]:
    """The blocks of those pages that are run, in order."""
    found = (block for page in pages for block in BLOCK.finditer(page.read_text("utf-8")))
    return [block for block in found if block["language"] in RUN and not block["why"]]


ALONE = [page for page in PAGES if page != OUTPUTS and _blocks(page)]
"""Pages whose blocks need nothing from another page."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = noise(3, 150, 200, "uint8", 1)
    transform = Affine(1 / 15, 0.0, 10.0, 0.0, -1 / 15, 50.0)
    write_raster(tmp_path / "big_image.tif", values, crs="EPSG:4326", transform=transform, photometric="RGB")
    return tmp_path


def test_every_block_runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those of the README, with no extras but those it installs, then those of the page of outputs."""
    blocks = _blocks(README)
    assert len(blocks) >= 3
    _run(blocks, folder, without=_hidden_extras(tmp_path_factory.mktemp("hidden")))
    assert (folder / "maps" / "big_image.run.json").exists()
    _run(_blocks(OUTPUTS), folder)


def _hidden_extras(folder: Path) -> Path:
    """A folder which, on the path of Python, hides the extras that the README's line of pip does not name."""
    (line,) = re.findall(r"pip install '\.\[(.*)\]'", README.read_text("utf-8"))
    hidden = {part for name, parts in EXTRAS.items() if name not in line.split(",") for part in parts}
    modules = [module for module, of in importlib.metadata.packages_distributions().items() if hidden & {*of}]
    assert "obstore" in modules
    assert "pyarrow" not in modules
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n")
    return folder


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(folder: Path, page: Path) -> None:
    """A small slide of 0.5 micrometres, half of it glass, lies there too."""
    half = cells(128, 192)
    half[:, 96:] = 240
    pyramid(folder / "slide.svs", [half, half[::2, ::2]])
    _run(_blocks(page), folder)


def _run(blocks: list[re.Match[str]], folder: Path, without: Path | None = None) -> None:
    environment = {**os.environ, **({"PYTHONPATH": str(without)} if without else {})}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        if "import duckdb" in block["code"] and not importlib.util.find_spec("duckdb"):
            continue
        command = ["bash", "-euo", "pipefail", "-c"] if block["language"] == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block["code"]],
            cwd=folder,
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block['code']}\n{done.stderr}"


@pytest.mark.parametrize("page", [README, *ALONE], ids=lambda page: page.stem)
def test_blocks_that_are_not_run_say_why(page: Path) -> None:
    for block in BLOCK.finditer(page.read_text("utf-8")):
        assert block["language"] in RUN or block["why"], block["code"]


def test_the_recipe_in_the_documentation_is_one() -> None:
    pages = [README, ROOT / "docs" / "training.md"]
    short, block = (next(b for b in BLOCK.finditer(p.read_text()) if b["language"] == "toml") for p in pages)
    assert Recipe.model_validate(tomllib.loads(short["code"])).model.name == "roofs"
    recipe = Recipe.model_validate(tomllib.loads(block["code"]))
    assert recipe.images.polygons == Polygons()
    assert isinstance(recipe.split, BlockSplit)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("model", list(embedded()), ids=lambda model: model.card.name)
def test_an_embedded_models_page_says_what_its_card_says(model: ModelFile) -> None:
    page, scores = model.path.with_suffix(".md").read_text("utf-8"), model.card.scores
    assert scores is not None
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    heads = next(cells for cells in lines if "mean IU" in cells)
    row = dict(zip(heads, next(cells for cells in lines if cells[0] == model.card.name), strict=True))
    assert float(row["pixel accuracy"]) == pytest.approx(scores.pixel_accuracy, abs=6e-4)
    assert float(row["mean IU"]) == pytest.approx(scores.mean_iu, abs=6e-4)
    told = [float(cell) for cell in list(row.values())[-len(model.card.legend) :]]
    assert told == pytest.approx([scores.class_iu[c.name] for c in model.card.legend.classes], abs=6e-4)
    assert f"halo {model.card.halo} px" in page
