"""Every code block of the README runs, in order, in a folder that holds `big_image.tif`."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from affine import Affine

from fcn_batch.pipeline.recipe import Polygons, Recipe
from fcn_batch.pipeline.splits import BlockSplit
from fcn_batch.pipeline.weights import ModelFile
from fcn_batch.workflows.models import embedded
from tests.rasters import noise, write_raster

README = Path(__file__).parent.parent / "README.md"
DOCS_RUN = [README, *(README.parent / "docs" / f"{name}.md" for name in ("outputs", "api"))]
"""In this order: what one page makes, the next may use."""
DOCS = [README, *sorted(README.parent.glob("docs/*.md")), README.parent / "CONTRIBUTING.md"]
BLOCK = re.compile(r"(?:<!-- (?P<why>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
RUN = {"bash", "python"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("readme")
    values = noise(3, 150, 200, "uint8", 1)
    transform = Affine(1 / 15, 0.0, 10.0, 0.0, -1 / 15, 50.0)
    write_raster(place / "big_image.tif", values, crs="EPSG:4326", transform=transform, photometric="RGB")
    return place


def test_every_block_runs(folder: Path) -> None:
    blocks = [block for page in DOCS_RUN for block in BLOCK.finditer(page.read_text())]
    ran = [block for block in blocks if block["language"] in RUN]
    assert len(ran) >= 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in ran:
        command = ["bash", "-euo", "pipefail", "-c"] if block["language"] == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block["code"]],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block['code']}\n{done.stderr}"
    assert (folder / "maps" / "big_image.run.json").exists()


def test_blocks_that_are_not_run_say_why() -> None:
    for block in BLOCK.finditer(README.read_text()):
        assert block["language"] in RUN or block["why"], block["code"]


def test_the_recipe_in_the_documentation_is_one() -> None:
    pages = [README, README.parent / "docs" / "training.md"]
    short, block = (next(b for b in BLOCK.finditer(p.read_text()) if b["language"] == "toml") for p in pages)
    assert Recipe.model_validate(tomllib.loads(short["code"])).model.name == "roofs"
    recipe = Recipe.model_validate(tomllib.loads(block["code"]))
    assert recipe.images.polygons == Polygons()
    assert isinstance(recipe.split, BlockSplit)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
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
