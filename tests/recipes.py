"""Small recipes, and data sets to train on."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine

from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.workflows.learning.labelled import LabelledImage, band_statistics, open_images
from tests.models import tiny_architecture
from tests.rasters import write_raster

GRID: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)}
STRIP, STRIPS, ROWS = 37, 7, 60
"""Strips that end off the network's grid of 8."""
COLS = STRIP * STRIPS - 11
"""The last strip is cut off."""
TRAINED, VALIDATED, TESTED = (0, 2, 4), (1,), (3, 6)
"""Strips by their use; 5 is for nothing."""
FILES = {"by": "files", "val": ["val*"], "test": ["test*"]}


def recipe_values(classes: int | list[dict[str, Any]] = 2, **parts: Any) -> dict[str, Any]:
    """What a recipe's TOML file would hold; `parts` change what is in its tables, "split" as a whole."""
    if isinstance(classes, int):
        classes = [{"id": k, "name": f"class {k}", "colour": "#102030"} for k in range(classes)]
    values: dict[str, Any] = {
        "model": {"name": "tiny", "version": "1", "summary": "A test", "gsd_m": 10.0},
        "architecture": tiny_architecture(dropout=0.0).model_dump(),
        "classes": classes,
        "images": {"paths": ["image.tif"], "labels": "labels.tif", "bands": ["red", "green"]},
        "split": {"by": "strips", "width": STRIP, "val": VALIDATED, "test": TESTED, "never": [5]},
        "augment": {},
        "schedule": {"steps": 5, "batch": 4, "crop": 24},
    }
    for name, part in parts.items():
        values[name] = {**values[name], **part} if isinstance(part, dict) and name != "split" else part
    return values


def tiny_recipe(classes: int | list[dict[str, Any]] = 2, **parts: Any) -> Recipe:
    """A recipe for one image in strips of columns, as `recipe_values` changes it."""
    return Recipe.model_validate(recipe_values(classes, **parts))


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    """A recipe's file of tables, one level deep, and of lists of tables."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict | list)]
    for key, value in values.items():
        for table in [value] if isinstance(value, dict) else value if isinstance(value, list) else []:
            lines.append(f"[{key}]" if isinstance(value, dict) else f"[[{key}]]")
            lines += [f"{name} = {_toml(inner)}" for name, inner in table.items() if inner is not None]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def write_pair(folder: Path, image: NDArray[Any], labels: NDArray[Any], **profile: Any) -> None:
    """Write image.tif (bands, rows, cols) and labels.tif (rows, cols); `profile` is the image's."""
    write_raster(folder / "image.tif", image, **{**GRID, **profile})
    write_raster(folder / "labels.tif", labels[None], **GRID)


def two_colours(folder: Path, dtype: str = "uint8", scale: int = 1) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Write squares of two classes whose colours overlap pixel by pixel, and no label in the first rows."""
    rng = np.random.default_rng(0)
    row, col = np.indices((ROWS, COLS))
    labels = ((row // 20 + col // 17) % 2).astype(np.uint8)
    image = 100 + np.array([30, -20])[:, None, None] * (2.0 * labels - 1) + rng.normal(0, 30, (2, ROWS, COLS))
    image = (image.clip(0, 255) * scale).astype(dtype)
    labels[:3] = 255
    write_pair(folder, image, labels)
    return image, labels


def columns(folder: Path) -> None:
    """Write an image whose every pixel's class and colours are its column."""
    col = np.broadcast_to(np.arange(COLS, dtype=np.uint8), (ROWS, COLS))
    write_pair(folder, np.stack([col, col]), col)


def opened(folder: Path, recipe: Recipe) -> tuple[list[LabelledImage], InputSpec]:
    """Images and what the network is to know of their bands."""
    images = open_images(recipe, folder)
    return images, band_statistics(images, recipe)
