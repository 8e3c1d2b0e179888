"""The images of a recipe with their labels: what training and scoring read windows of."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.places import expand, resolve
from fcn_batch.pipeline.core.recipe import Images, Place, Recipe
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource
from fcn_batch.pipeline.core.splits import USES, Use, check_split
from fcn_batch.pipeline.network.predictor import Scaling
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.labels import NO_LABEL, Burn, Grid, Labels, open_labels
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.learning.splits import regions

_PART = 1024
"""Side of what is read at once to look at a whole region."""
_KEPT_BYTES = 2 * 2**30
"""Images and labels that are kept in memory, first come first kept: thousands of small files are read once each."""


class Channels:
    """From label ids to score channels, 255 for what teaches nothing."""

    def __init__(self, recipe: Recipe) -> None:
        pairs = sorted((i, channel) for channel, c in enumerate(recipe.classes) for i in c.label_ids)
        self._ids = np.array([i for i, _ in pairs], dtype=np.int64)
        self._channels = np.array([channel for _, channel in pairs], dtype=np.uint8)
        self._silent = {NO_LABEL, *recipe.images.ignore} - set(self._ids.tolist())

    def of(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Channel of each label, in its shape."""
        place = np.searchsorted(self._ids, labels).clip(max=len(self._ids) - 1)
        return np.where(self._ids[place] == labels, self._channels[place], np.uint8(NODATA))

    def unknown(self, labels: NDArray[np.integer[Any]]) -> set[int]:
        """Ids that are neither a class's nor to be ignored."""
        return set(np.unique(labels).tolist()) - set(self._ids.tolist()) - self._silent


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image, its labels on its own grid, and which of its windows are for what."""

    name: str
    image: RasterSource
    labels: Labels
    bands: tuple[int, ...]
    regions: Mapping[Use, list[Window]]
    channels: Channels
    kept: "tuple[Pixels, NDArray[np.uint8]] | None" = None
    """All pixels and channels, of an image that was read whole."""

    @property
    def info(self) -> RasterInfo:
        """What is known about the image."""
        return self.image.info

    def read(self, window: Window) -> Pixels:
        """Bands and mask of a window, in the raster's own type."""
        if self.kept is None:
            return self.image.read(window, self.bands)
        values, valid = self.kept[0].values, self.kept[0].valid
        rows, cols = window.slices()
        return Pixels(values[:, rows, cols], valid[rows, cols])

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Channel numbers of a window, 255 where there is no label: (rows, cols)."""
        if self.kept is None:
            return self.channels.of(self.labels.read(window))
        return self.kept[1][window.slices()]

    def read_image(self, window: Window, spec: InputSpec) -> NDArray[np.float32]:
        """Normalised bands of a window: (bands, rows, cols)."""
        pixels = self.read(window)
        image: NDArray[np.float32] = (
            Scaling(spec, "cpu").image(pixels.values, pixels.valid, pixels.valid.shape)[0].numpy()
        )
        return np.ascontiguousarray(image)

    def parts(self, use: Use) -> Iterator[Window]:
        """The regions for `use`, in pieces that fit into memory."""
        for region in self.regions[use]:
            for row in range(region.row, region.stop_row, _PART):
                for col in range(region.col, region.stop_col, _PART):
                    yield Window(row, col, _PART, _PART).intersection(region)


def open_images(recipe: Recipe, folder: Path) -> list[LabelledImage]:
    """All images of a recipe, checked; TrainingError or InputError with what is wrong.

    Every label is looked at once: ids that are no class, images whose labels lie elsewhere, splits without labels
    and labels of one class only are found before anything is trained.
    """
    images, room = [], _KEPT_BYTES
    for path, labels in _pairs(recipe.images, folder):
        image = _keep(_open(recipe, path, labels, folder), room)
        room -= 0 if image.kept is None else _bytes(image)
        images.append(image)
    check_split(recipe.split, {use: [image.regions[use] for image in images] for use in USES})
    _check_labels(images, recipe)
    return images


def _pairs(images: Images, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Image files and their label files. ``*`` in the pattern is {1} in the labels' name, a second one {2}."""
    seen: set[Path] = set()
    for pattern in images.paths:
        star = re.compile(_stars(pattern))
        for path in expand(pattern, folder):
            if path in seen:  # by an earlier pattern
                continue
            seen.add(path)
            relative = path.relative_to(folder) if path.is_relative_to(folder) else path
            found = star.fullmatch(relative.as_posix())
            stars = ("", *(found.groups("") if found else ()))
            try:
                labels = images.labels.format(*stars, stem=path.stem, parent=relative.parent.as_posix())
            except (IndexError, KeyError, ValueError) as error:
                message = f"images.labels: {images.labels!r} cannot be filled in for {relative} ({error!r})"
                raise TrainingError(f"{message}; use {{stem}}, {{parent}} or {{1}} for the first *") from error
            yield path, resolve(labels, folder)


def _stars(pattern: str) -> str:
    """A regular expression with a group for each star; ``**/`` stands for no folder, or for some.

    >>> re.fullmatch(_stars("*/**/*_rgb.tif"), "a/b/c/d_1_rgb.tif").groups()
    ('a', 'b/c', 'd_1')
    """
    known = {"**/": "(?:(.*)/)?", "*": "([^/]*)", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?|\[[^]]+\])", pattern)
    return "".join(
        known.get(part, part.replace("[!", "[^") if n % 2 else re.escape(part)) for n, part in enumerate(parts)
    )


def _open(recipe: Recipe, path: Path, labels: Path, folder: Path) -> LabelledImage:
    images = recipe.images
    info = RasterioSource(path).info
    if images.place is not None:
        info = replace(info, georeference=_georeference(images.place))
    source, wanted = RasterioSource(path, info), len(images.bands)
    if info.bands < wanted and info.bands != 1:
        raise TrainingError(f"{path} has {info.bands} bands, images.bands names {', '.join(images.bands)}")
    bands = tuple(range(1, wanted + 1)) if info.bands >= wanted else (1,) * wanted
    grid = Grid(info.size, info.georeference)
    burn = None if images.polygons is None else Burn(**images.polygons.model_dump())
    place = None if images.labels_place is None else _georeference(images.labels_place)
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    windows = {use: regions(recipe.split, name, grid, folder, use) for use in USES}
    return LabelledImage(
        name, source, open_labels(labels, grid, burn=burn, georeference=place), bands, windows, Channels(recipe)
    )


def _georeference(place: Place) -> GeoReference:
    return GeoReference(wkt_of(place.crs), place.transform)


def _bytes(image: LabelledImage) -> int:
    info = image.info
    return info.size.pixels * (np.dtype(info.dtype).itemsize * len(set(image.bands)) + 2)


def _keep(image: LabelledImage, room: int) -> LabelledImage:
    """The same, read whole when there is room."""
    if _bytes(image) > room:
        return image
    whole = Window(0, 0, image.info.size.height, image.info.size.width)
    bands = tuple(dict.fromkeys(image.bands))
    pixels = image.image.read(whole, bands)
    if len(bands) < len(image.bands):
        pixels = Pixels(np.broadcast_to(pixels.values, (len(image.bands), *pixels.valid.shape)), pixels.valid)
    labels = image.labels.read(whole)
    for part in (part for use in USES for part in image.parts(use)):
        _check_ids(image, labels[part.slices()])
    image.image.close()
    return replace(image, kept=(pixels, image.channels.of(labels)))


def _check_ids(image: LabelledImage, labels: NDArray[np.integer[Any]]) -> None:
    if strange := sorted(image.channels.unknown(labels)):
        shown = ", ".join(map(str, strange[:10])) + (", …" if len(strange) > 10 else "")
        raise TrainingError(
            f"the labels of {image.name} hold {shown}, which no class has; list them in a class's `labels` "
            "or in images.ignore"
        )


def _check_labels(images: list[LabelledImage], recipe: Recipe) -> None:
    """TrainingError when a split has no label, or training labels are of one class."""
    for use in USES:
        counts = np.zeros(NODATA + 1, dtype=np.int64)
        for image in images:
            for part in image.parts(use):
                if image.kept is None:
                    _check_ids(image, image.labels.read(part))
                counts += np.bincount(image.read_labels(part).ravel(), minlength=NODATA + 1)
        seen = [c.name for c, n in zip(recipe.classes, counts, strict=False) if n]
        if not seen:
            raise TrainingError(f"no labelled pixel in the {use} split; check [split] and the labels")
        if use == "train" and len(seen) == 1:
            raise TrainingError(f"all training labels are {seen[0]!r}: there is nothing to tell apart")


def band_statistics(images: list[LabelledImage], recipe: Recipe) -> tuple[InputSpec, NDArray[np.int64]]:
    """Mean and standard deviation of each band over the training regions, and pixels of each class there."""
    names = recipe.images.bands
    total, squares, pixels = np.zeros(len(names)), np.zeros(len(names)), 0
    counts = np.zeros(len(recipe.classes), dtype=np.int64)
    types = {image.info.dtype for image in images}
    if len(types) > 1:
        raise TrainingError(f"the images have pixels of different types: {', '.join(sorted(types))}; convert some")
    for image in images:
        for part in image.parts("train"):
            read = image.read(part)
            values = read.values[:, read.valid].astype(np.float64) / recipe.images.full_scale
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
            pixels += values.shape[1]
            labels = image.read_labels(part)
            counts += np.bincount(labels[labels != NODATA], minlength=len(counts))
    if not pixels:
        raise TrainingError("no valid pixel in the training split; check [split] and the images' nodata")
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))
    bands = [{"name": n, "mean": m, "std": s} for n, m, s in zip(names, mean.tolist(), std.tolist(), strict=True)]
    dtype = cast("Any", types.pop())
    spec = {"bands": bands, "dtype": dtype, "full_scale": recipe.images.full_scale, "gsd_m": recipe.model.gsd_m}
    return InputSpec.model_validate(spec), counts
