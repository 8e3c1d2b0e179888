"""A finished class map in a zarr store, read only. Beside `classstore.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.limits import size_problem
from fcn_batch.pipeline.store.classstore import ARRAY, CONFIDENCE
from fcn_batch.pipeline.store.opening import UNSAFE, open_array, why


class FinishedMap:
    """A finished class map, read only: what ClassStore made, with legend and place read back from its attributes."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`; InputError when it is none, or none that this project wrote."""
        self.path = path
        try:
            self._array = open_array(path / ARRAY)
            place = open_array(path / "spatial_ref").attrs.asdict()
            found = self._array.attrs.asdict()
            parts = [found[name] for name in ("flag_values", "class_names")] + [str(found["flag_colors"]).split()]
            entries = [dict(zip(("id", "name", "colour"), one, strict=True)) for one in zip(*parts, strict=True)]
            self.legend = Legend.model_validate({"classes": entries})
            if self._array.dtype != np.uint8 or not self.legend.fits_a_map:
                raise ValueError(f"{self._array.dtype} with ids up to {max(self.legend.ids)}")
            self.size = Size(*self._array.shape)
            if problem := size_problem(self.size.height, self.size.width):
                raise ValueError(problem)
            x, a, b, y, d, e = (float(number) for number in str(place["GeoTransform"]).split())
            wkt = found.get("proj:wkt2")
            self.georeference = GeoReference(None if wkt is None else str(wkt), (a, b, x, d, e, y))
            self.block = (int(self._array.chunks[0]), int(self._array.chunks[1]))  # in a shard, those that it holds
        except UNSAFE as error:
            raise InputError(
                "map-not-ours",
                "{path}: not a class map that fcn-batch wrote ({why}); give NAME.classes.zarr",
                path=path,
                why=why(error),
            ) from error

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8, 255 where there is no data. InputError for damaged chunks."""
        return _read(self.path, self._array, window)


class FinishedConfidence:
    """A finished store of confidences, read only."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`; InputError when it is none."""
        self.path = path
        try:
            self._arrays = [open_array(path / name) for name in CONFIDENCE]
        except UNSAFE as error:
            raise InputError(
                "map-not-ours",
                "{path}: not a store of confidences ({why}); give NAME.confidence.zarr",
                path=path,
                why=why(error),
            ) from error

    def read(self, plane: int, window: Window) -> NDArray[np.uint8]:
        """One plane of a window as stored: (rows, cols), uint8. InputError for damaged chunks."""
        return _read(self.path, self._arrays[plane], window)


def _read(path: Path, array: zarr.Array[Any], window: Window) -> NDArray[np.uint8]:
    try:
        return np.asarray(array[window.slices()], dtype=np.uint8)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            "map-damaged",
            "{path}: a chunk in {window} cannot be read ({why}); make the map again",
            path=path,
            window=window,
            why=why(error),
        ) from error
