"""The images of a recipe with their labels: what training and scoring read windows of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.location import expand, resolve
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.recipe import Images, Place, Recipe
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource
from fcn_batch.pipeline.core.splits import USES, Regions, RegionSplit, Split, Use, joined
from fcn_batch.pipeline.network.predictor import Scaling
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.labels import Burn, Grid, Labels, open_labels
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.learning.labelids import UNKNOWN, Translation, listed

_PART = 1024
"""Side of what is read at once to look at a whole region."""
_KEPT_BYTES = 2 * 2**30
"""Images and labels that are kept in memory, first come first kept: thousands of small files are read once each."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image, its labels on its own grid, and which of its windows are for what."""

    name: str
    image: RasterSource
    labels: Labels
    bands: tuple[int, ...]
    regions: Regions
    channels: Translation
    """From label ids to score channels, 255 for what teaches nothing."""
    kept: tuple[Pixels, NDArray[np.uint8]] | None = None
    """All pixels and channels, of an image that was read whole."""

    @property
    def info(self) -> RasterInfo:
        """What is known about the image."""
        return self.image.info

    def read(self, window: Window) -> Pixels:
        """Return bands and mask of a window, in the raster's own type."""
        if self.kept is None:
            return self.image.read(window, self.bands)
        rows, cols = window.slices()
        return Pixels(self.kept[0].values[:, rows, cols], self.kept[0].valid[rows, cols])

    def read_labels(self, window: Window) -> NDArray[np.uint8]:
        """Return channel numbers of a window, (rows, cols), 255 where there is no label.

        TrainingError for label ids that are neither a class's nor to be ignored.
        """
        if self.kept is not None:
            return self.kept[1][window.slices()]
        ids = self.labels.read(window)
        return _checked(self.name, ids, self.channels.of(ids))

    def read_image(self, window: Window, spec: InputSpec) -> NDArray[np.float32]:
        """Return normalised bands of a window: (bands, rows, cols)."""
        pixels = self.read(window)
        image: NDArray[np.float32] = (
            Scaling(spec, "cpu").image(pixels.values, pixels.valid, pixels.valid.shape)[0].numpy()
        )
        return np.ascontiguousarray(image)

    def parts(self, use: Use) -> Iterator[Window]:
        """Return the regions for `use`, in pieces that fit into memory."""
        for region in self.regions[use]:
            for row in range(region.row, region.stop_row, _PART):
                for col in range(region.col, region.stop_col, _PART):
                    yield Window(row, col, _PART, _PART).intersection(region)


def _checked(name: str, ids: NDArray[np.int32], channels: NDArray[np.int16]) -> NDArray[np.uint8]:
    if unknown := sorted(set(ids[channels == UNKNOWN].tolist())):
        raise TrainingError(
            "labels-unknown-ids",
            "the labels of {name} hold {ids}, which no class has; list them in a class's `labels` or images.ignore",
            name=name,
            ids=listed(unknown),
        )
    return channels.astype(np.uint8)


def open_images(recipe: Recipe, folder: Path) -> list[LabelledImage]:
    """Return all images of a recipe, checked; TrainingError or InputError with what is wrong.

    Every label is looked at once: ids that are no class, images whose labels lie elsewhere, splits without labels
    and labels of one class only are found before anything is trained.
    """
    images, room = [], _KEPT_BYTES
    for path, labels in _pairs(recipe.images, folder):
        image = _keep(_open(recipe, path, labels, folder), room)
        room -= 0 if image.kept is None else _bytes(image)
        images.append(image)
    for use in USES:
        seen = [c.name for c, n in zip(recipe.classes, label_counts(images, use), strict=False) if n]
        if not seen:
            pixels = sum(region.pixels for image in images for region in image.regions[use])
            raise TrainingError(
                "split-unlabelled",
                "no labelled pixel among the {pixels} of the {use} split; check [split] and the labels",
                use=use,
                pixels=pixels,
            )
        if use == "train" and len(seen) == 1:
            raise TrainingError("labels-one-class", "all training labels are {name!r}; label two classes", name=seen[0])
    return images


def _pairs(images: Images, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield image files and their label files. ``*`` in the pattern is {1} in the labels' name, a second one {2}."""
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
                raise TrainingError(
                    "labels-pattern",
                    "images.labels: {pattern!r} cannot be filled in for {name} ({error!r}); "
                    "use {{stem}}, {{parent}} or {{1}} for the first *",
                    pattern=images.labels,
                    name=relative,
                    error=error,
                ) from error
            yield path, resolve(labels, folder)


def _stars(pattern: str) -> str:
    """Return a regular expression with a group for each star; ``**/`` stands for no folder, or for some.

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
    wanted = len(images.bands)
    if 1 < info.bands < wanted:
        raise TrainingError(
            "images-bands",
            "{path} has {bands} bands, images.bands names {names}; name as many as there are",
            path=path,
            bands=info.bands,
            names=", ".join(images.bands),
        )
    grid = Grid(info.size, info.georeference)
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    burn = None if images.polygons is None else Burn(**images.polygons.model_dump())
    place = None if images.labels_place is None else _georeference(images.labels_place)
    return LabelledImage(
        name,
        RasterioSource(path, info),
        open_labels(labels, grid, burn=burn, georeference=place),
        tuple(range(1, wanted + 1)) if info.bands >= wanted else (1,) * wanted,
        regions_of(recipe.split, name, grid, folder),
        Translation({i: channel for channel, c in enumerate(recipe.classes) for i in c.label_ids}, images.ignore),
    )


def _georeference(place: Place) -> GeoReference:
    return GeoReference(wkt_of(place.crs), place.transform)


def regions_of(split: Split, name: str, grid: Grid, folder: Path) -> Regions:
    """Return the windows of the file `name`, with pixels on `grid`, for each use.

    Neighbouring blocks and cells are joined, so training windows may be larger than one of them. `folder` is where
    the files that the split names are looked for. TrainingError when a list or a file of polygons is missing or wrong.
    """
    if not isinstance(split, RegionSplit):
        return split.regions(name, grid.size, folder)
    from fcn_batch.pipeline.raster.vectors import Polygons

    size, cell = grid.size, split.cell
    shape = -(-size.height // cell), -(-size.width // cell)
    windows = [Window(r * cell, c * cell, cell, cell).clipped(size) for r, c in np.ndindex(shape)]
    val, near_val = Polygons.open(resolve(split.val, folder), grid).cells(windows)
    test, near_test = Polygons.open(resolve(split.test, folder), grid).cells(windows)
    chosen: dict[Use, NDArray[np.bool_]] = {"train": ~(near_val | near_test), "val": val & ~test, "test": test & ~val}
    return {use: joined(cells.reshape(shape), cell, size) for use, cells in chosen.items()}


def _bytes(image: LabelledImage) -> int:
    info = image.info
    return info.size.pixels * (np.dtype(info.dtype).itemsize * len(set(image.bands)) + 2)


def _keep(image: LabelledImage, room: int) -> LabelledImage:
    """Return the same, read whole when there is room."""
    if _bytes(image) > room:
        return image
    whole = Window(0, 0, image.info.size.height, image.info.size.width)
    bands = tuple(dict.fromkeys(image.bands))
    pixels = image.image.read(whole, bands)
    if len(bands) < len(image.bands):
        pixels = Pixels(np.broadcast_to(pixels.values, (len(image.bands), *pixels.valid.shape)), pixels.valid)
    ids = image.labels.read(whole)
    channels = image.channels.of(ids)
    for part in (part.slices() for use in USES for part in image.parts(use)):
        _checked(image.name, ids[part], channels[part])
    image.image.close()
    return replace(image, kept=(pixels, channels.astype(np.uint8)))


def label_counts(images: Sequence[LabelledImage], use: Use) -> NDArray[np.int64]:
    """Return the pixels of each channel in the regions for `use`, and at 255 those without a label: (256,)."""
    counts = np.zeros(NODATA + 1, dtype=np.int64)
    for image in images:
        for part in image.parts(use):
            counts += np.bincount(image.read_labels(part).ravel(), minlength=NODATA + 1)
    return counts


def band_statistics(images: Sequence[LabelledImage], recipe: Recipe) -> InputSpec:
    """Return the bands with their mean and standard deviation over the training regions."""
    names = recipe.images.bands
    total, squares, pixels = np.zeros(len(names)), np.zeros(len(names)), 0
    types = sorted({image.info.dtype for image in images})
    if len(types) > 1:
        raise TrainingError(
            "images-types", "the images have pixels of different types: {types}; convert some", types=", ".join(types)
        )
    for image in images:
        for part in image.parts("train"):
            read = image.read(part)
            values = read.values[:, read.valid].astype(np.float64) / recipe.images.full_scale
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
            pixels += values.shape[1]
    if not pixels:
        raise TrainingError(
            "images-empty", "no valid pixel in the training split; check [split] and the images' nodata"
        )
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))
    bands = [{"name": n, "mean": m, "std": s} for n, m, s in zip(names, mean.tolist(), std.tolist(), strict=True)]
    spec = {"bands": bands, "dtype": types[0], "full_scale": recipe.images.full_scale, "gsd_m": recipe.model.gsd_m}
    return InputSpec.model_validate(spec)
