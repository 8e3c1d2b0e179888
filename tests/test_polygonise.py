"""Polygons made strip by strip are those of the whole map, and hold what its pixels hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import shapes as shapes_of

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.raster import polygons as module
from fcn_batch.pipeline.raster.polygons import Regions, Strip, polygonise
from tests.errors import refuses

Ids = NDArray[np.uint8]
IDS = st.sampled_from([0, 0, 0, 1, 1, 7, NODATA])
MAPS = st.tuples(st.integers(1, 16), st.integers(1, 16)).flatmap(lambda shape: arrays(np.uint8, shape, elements=IDS))
# Each region with itself at a corner: in a strip, on the edge of two, and over several of them.
PINCHED = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]], np.uint8)
SPIRAL = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], np.uint8)
COMB = np.array([[0, 1, 0, 1, 0]] * 6 + [[0, 1, 1, 1, 0]], np.uint8)


def strips(ids: Ids, *heights: int) -> Iterator[Strip]:
    """Strips of the given heights, the last one again and again."""
    row, given_heights = 0, list(heights)
    while row < len(ids):
        stop = row + (given_heights.pop(0) if len(given_heights) > 1 else given_heights[0])
        above = ids[row - 1] if row else None
        yield Strip(row, ids[row:stop], above, ids[stop] if stop < len(ids) else None)
        row = stop


def joined(ids: Ids, *heights: int, areas: NDArray[np.float64] | None = None, simplify: float = 0.0) -> Regions:
    """All regions of a map in one."""
    parts = list(polygonise(strips(ids, *heights), areas, simplify))
    return Regions(
        np.concatenate([part.shapes for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.areas for part in parts if part.areas is not None]) if areas is not None else None,
    )


def as_set(polygons: list[tuple[int, Any]]) -> list[tuple[int, str]]:
    """Polygons that can be compared whatever point their rings begin at, every vertex counted."""
    return sorted((k, shapely.normalize(polygon).wkt) for k, polygon in polygons)


def whole(ids: Ids) -> list[tuple[int, Any]]:
    """The polygons of a map at once, by rasterio."""
    found = shapes_of(ids, mask=ids != NODATA, connectivity=4)
    return [(int(value), shapely.geometry.shape(shape)) for shape, value in found]


def with_holes(size: int, seed: int) -> Ids:
    """A map whose first class is all around and full of holes."""
    return (np.random.default_rng(seed).random((size, size)) < 0.35).astype(np.uint8)


@settings(max_examples=50)
@given(MAPS, st.lists(st.integers(1, 6), min_size=1, max_size=5))
@example(PINCHED, [1])
@example(PINCHED, [2])
@example(SPIRAL, [1])
@example(SPIRAL, [3, 1])
@example(COMB, [2])
def test_strips_make_the_polygons_of_the_whole_map(ids: Ids, heights: list[int]) -> None:
    found = joined(ids, *heights)
    assert as_set(list(zip(found.ids.tolist(), found.shapes, strict=True))) == as_set(whole(ids))
    assert shapely.is_valid(found.shapes).all()


@pytest.mark.parametrize("height", [7, 64])
def test_a_region_of_many_pieces_and_holes(height: int) -> None:
    ids = with_holes(200, 1)
    found = joined(ids, height)
    assert as_set(list(zip(found.ids.tolist(), found.shapes, strict=True))) == as_set(whole(ids))


@settings(max_examples=30)
@given(MAPS, st.integers(1, 6), st.integers(0, 2**16))
def test_pixels_and_areas_are_those_under_the_polygon(ids: Ids, height: int, seed: int) -> None:
    row_areas = np.random.default_rng(seed).random(len(ids)) + 1
    found = joined(ids, height, areas=row_areas)
    ground = np.broadcast_to(row_areas[:, None], ids.shape)
    rows, cols = np.indices(ids.shape) + 0.5
    assert found.areas is not None
    for k, polygon in enumerate(found.shapes):
        inside = shapely.contains_xy(polygon, cols, rows)
        assert (ids[inside] == found.ids[k]).all()
        assert found.pixels[k] == inside.sum()
        assert found.areas[k] == pytest.approx(ground[inside].sum(), rel=1e-12)
    for k in {*found.ids.tolist()}:
        assert found.pixels[found.ids == k].sum() == (ids == k).sum()
        assert found.areas[found.ids == k].sum() == pytest.approx(ground[ids == k].sum(), rel=1e-12)
    assert joined(ids, height).areas is None


@pytest.mark.skipif(shapely.geos_version < (3, 12, 0), reason="this GEOS has no coverages")
@settings(max_examples=40)
@given(MAPS, st.integers(1, 6), st.integers(1, 3), st.sampled_from([0.8, 1.5, 4.0, 20.0]))
@example(PINCHED, 2, 2, 1.5)
@example(SPIRAL, 2, 2, 1.5)
def test_simplified_neighbours_keep_their_borders(ids: Ids, height: int, factor: int, simplify: float) -> None:
    """With a class in the place of no data the polygons cover the map: no gap, no overlap, the same vertices."""
    ids = np.kron(np.where(ids == NODATA, 9, ids), np.ones((factor, factor))).astype(np.uint8)
    found = joined(ids, height, simplify=simplify)
    assert found.pixels.sum() <= ids.size  # what is smaller than the tolerance may vanish
    assert shapely.is_valid(found.shapes).all()
    assert {*shapely.get_type_id(found.shapes)} == {shapely.GeometryType.POLYGON}
    assert shapely.area(found.shapes).sum() == pytest.approx(ids.size, rel=1e-9)
    assert shapely.coverage_is_valid(found.shapes)
    assert shapely.equals(shapely.union_all(found.shapes), shapely.box(0, 0, ids.shape[1], ids.shape[0]))


@pytest.mark.skipif(shapely.geos_version < (3, 12, 0), reason="this GEOS has no coverages")
def test_borders_to_no_data_are_simplified_too() -> None:
    ids = np.where(np.add.outer(np.arange(60), np.arange(60)) < 60, 1, NODATA).astype(np.uint8)
    found = joined(ids, 25, simplify=1.5)
    assert len(found) == 1
    assert found.pixels[0] == (ids == 1).sum()  # as counted, not as drawn
    assert shapely.get_num_coordinates(found.shapes[0]) < 20  # of 121
    assert shapely.get_num_coordinates(joined(ids, 25).shapes[0]) > 100


def test_vertices_on_the_edges_of_strips_stay() -> None:
    ids = np.where(np.add.outer(np.arange(60), np.arange(60)) < 60, 1, 0).astype(np.uint8)
    found = joined(ids, 20, simplify=2.0)
    at = [point for point in shapely.get_coordinates(found.shapes[0]).tolist() if point[1] in (20, 40)]
    assert {(x, y) for x, y in at} >= {(40.0, 20.0), (20.0, 40.0)}


def test_regions_come_as_soon_as_they_end() -> None:
    ids = np.array([[1, 0], [2, 0], [3, 0], [4, 0]], np.uint8)
    given_strips: list[int] = []

    def noted() -> Iterator[Strip]:
        for strip in strips(ids, 1):
            given_strips.append(strip.row)
            yield strip

    came = {int(k): len(given_strips) for part in polygonise(noted(), None) for k in part.ids}
    assert came == {1: 2, 2: 3, 3: 4, 4: 4, 0: 4}  # the next strip has to show that a region does not go on


def test_a_geos_without_coverages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GEOS", (99, 0, 0))
    with refuses("library-too-old", simplify=2.0):
        joined(PINCHED, 2, simplify=2.0)
