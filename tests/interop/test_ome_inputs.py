"""OME-Zarr as its own library writes it, read as an input.

Here, and not beside the other zarr inputs: that library wants another botocore than moto, which the other tests need.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY
from fcn_batch.pipeline.core.source import Pixels, RasterSource, SourceFile
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.store.zarrsource import ZarrSource
from tests.errors import refuses
from tests.rasters import noise
from tests.zarrs import Format, by_ome

HEIGHT, WIDTH = 90, 70


def source(path: Path, level: int = 0) -> ZarrSource:
    return ZarrSource(path, level, wkt_of)


def whole(of: RasterSource, *bands: int) -> Pixels:
    size = of.info.size
    return of.read(Window(0, 0, size.height, size.width), bands or tuple(range(1, of.info.bands + 1)))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file of JSON."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["cyx", "tczyx", "czyx"])
def test_ome_zarr(tmp_path: Path, version: Format, axes: str) -> None:
    values = noise(3, HEIGHT, WIDTH)
    shape = [{"c": 3, "y": HEIGHT, "x": WIDTH}.get(axis, 1) for axis in axes]
    path = by_ome(values.reshape(shape), tmp_path / "a.ome.zarr", version, axes, ("Red", "Green", "Blue"))
    found = source(path)
    assert (whole(found).values == values).all()
    assert whole(found).valid.all()
    assert found.info.microns == 0.5
    assert found.info.georeference.transform == IDENTITY
    assert found.info.georeference.crs_wkt is None
    assert found.info.descriptions == ("Red", "Green", "Blue")
    assert found.info.colour_roles == ("red", "green", "blue")
    assert found.info.levels == (Size(90, 70), Size(45, 35), Size(22, 17))
    assert found.info.sources == (SourceFile(path=str(path), by="zarr", level=0),)
    second = source(path, 1)
    coarse = zarr.open_array(path / ("s1" if (path / "s1").exists() else "1"), mode="r")
    plain = np.asarray(coarse[...]).reshape(3, 45, 35)
    assert (whole(second).values == plain).all()
    assert second.info.levels == found.info.levels
    assert second.info.microns == 1.0
    assert second.info.georeference.transform == (2, 0, 0, 0, 2, 0)
    with refuses("level-missing", level=3, last=2):
        _ = source(path, 3).info


@pytest.mark.parametrize(
    ("unit", "microns"), [("nanometer", 5e-4), ("millimeter", 500.0), (None, None), ("yard", None)]
)
def test_units_of_ome_zarr(tmp_path: Path, unit: str | None, microns: float | None) -> None:
    path = by_ome(noise(3, 40, 50), tmp_path / "a.zarr", 3)

    def change(told: dict[str, Any]) -> None:
        for axis in told["attributes"]["ome"]["multiscales"][0]["axes"]:
            axis.pop("unit", None)
            if unit:
                axis["unit"] = unit

    edit(path / "zarr.json", change)
    assert source(path).info.microns == pytest.approx(microns)


@pytest.mark.parametrize("axes", ["tcyx", "czyx"])
def test_times_and_depths_are_not_guessed(tmp_path: Path, axes: str) -> None:
    values = noise(6, 40, 50).reshape((2, 3, 40, 50) if axes[0] == "t" else (3, 2, 40, 50))
    path = by_ome(values, tmp_path / "a.zarr", 3, axes)
    with refuses("store-of-several-images"):
        _ = source(path).info


def test_ome_has_no_nodata(tmp_path: Path) -> None:
    values = noise(3, 40, 50)
    values[:, 10:20] = 0
    path = by_ome(values, tmp_path / "a.zarr", 2)
    (array,) = (one.parent for one in path.glob("*0/.zarray"))
    assert json.loads((array / ".zarray").read_text())["fill_value"] == 0
    edit(array / ".zattrs", lambda told: told.update(_ARRAY_DIMENSIONS=["c", "y", "x"]))
    assert whole(source(path)).valid.all(), "black is black"


def test_alpha_is_the_mask(tmp_path: Path) -> None:
    values = noise(4, 40, 50)
    values[3, 5:20] = 0
    found = source(by_ome(values, tmp_path / "a.zarr", 3, "cyx", ("red", "green", "blue", "alpha")))
    assert found.info.colour_roles[3] == "alpha"
    assert (whole(found, 1, 2, 3).valid == (values[3] > 0)).all()
