"""Splits: no pixel has two uses, and every pixel that should have one has it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.splits import (
    USES,
    BlockSplit,
    FileSplit,
    RegionSplit,
    Split,
    StripSplit,
    joined,
    read_list,
)
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.labels import Grid
from fcn_batch.workflows.learning.labelled import regions_of
from tests.errors import refuses

NOWHERE = Path("/nowhere")


def grid_of(height: int, width: int) -> Grid:
    return Grid(Size(height, width), GeoReference(None, IDENTITY))


def uses(split: Split, name: str, grid: Grid, folder: Path = NOWHERE) -> NDArray[np.int64]:
    """For each pixel the number of its use, -1 for nobody's; a pixel with two uses fails here."""
    use_of = np.full((grid.size.height, grid.size.width), -1)
    regions = regions_of(split, name, grid, folder)
    for number, use in enumerate(USES):
        for window in regions[use]:
            assert window == window.clipped(grid.size)
            assert (use_of[window.slices()] == -1).all(), "a pixel has two uses"
            use_of[window.slices()] = number
    return use_of


# joining


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 7), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_joined_windows_cover_the_cells_and_nothing_else(
    rows: int, cols: int, cell: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.random((rows, cols)) < share
    size = Size(rows * cell - int(rng.integers(cell)), cols * cell - int(rng.integers(cell)))
    covered = np.zeros((size.height, size.width), int)
    for window in joined(wanted, cell, size):
        assert window == window.clipped(size)
        covered[window.slices()] += 1
    expected = wanted.repeat(cell, 0).repeat(cell, 1)[: size.height, : size.width]
    assert np.array_equal(covered, expected)


def test_all_cells_are_one_window_and_squares_come_before_stripes() -> None:
    assert joined(np.ones((9, 7), np.bool_), 10, Size(85, 70)) == [Window(0, 0, 85, 70)]
    cells = np.zeros((6, 20), np.bool_)
    cells[0], cells[:4, :4] = True, True  # a row of 20, and a square of 4x4 at its beginning
    assert joined(cells, 10, Size(60, 200)) == [Window(0, 0, 40, 40), Window(0, 40, 10, 160)]


# strips


@st.composite
def _strips(draw: st.DrawFn) -> StripSplit:
    strips = draw(st.permutations(range(8)))
    cuts = sorted(draw(st.tuples(st.integers(1, 4), st.integers(5, 8))))
    rows = draw(st.none() | st.tuples(st.integers(0, 5), st.integers(6, 12)))
    val, test, never = tuple(strips[: cuts[0]]), tuple(strips[cuts[0] : cuts[1]]), tuple(strips[cuts[1] :][:1])
    return StripSplit(width=draw(st.integers(1, 9)), val=val, test=test, never=never, score_rows=rows)


@settings(max_examples=50)
@given(_strips(), st.integers(1, 10), st.integers(1, 80))
def test_strips_cover_the_raster(split: StripSplit, height: int, width: int) -> None:
    use_of = uses(split, "a.tif", grid_of(height, width))
    start, stop = split.score_rows or (0, height)
    for row, col in np.ndindex(height, width):
        strip = col // split.width
        scored = 1 if strip in split.val else 2 if strip in split.test else -1 if strip in split.never else 0
        assert use_of[row, col] == (scored if scored < 1 or start <= row < stop else -1)
    for regions in split.regions("", Size(height, width), NOWHERE).values():
        assert regions == sorted(regions, key=lambda w: w.col)
        assert not {w.stop_col for w in regions} & {w.col for w in regions}, "neighbouring strips are one window"


# blocks


@settings(max_examples=50)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 15), st.integers(0, 99),
    st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)),
)  # fmt: skip
def test_each_block_is_of_one_use(height: int, width: int, side: int, seed: int, shares: tuple[float, float]) -> None:
    split = BlockSplit(size=side, val=shares[0], test=shares[1], seed=seed)
    use_of = uses(split, "a.tif", grid_of(height, width))
    for row in range(0, height, side):
        for col in range(0, width, side):
            block = use_of[row : row + side, col : col + side]
            assert block.min() == block.max() == USES.index(split.use_of("a.tif", row // side, col // side))


def test_blocks_depend_on_name_and_seed_and_on_nothing_else() -> None:
    fine = BlockSplit(size=1, val=0.1, test=0.25)
    drawn = np.concatenate([uses(fine, f"{k}.tif", grid_of(60, 60)).ravel() for k in range(4)])
    shares = np.bincount(drawn) / drawn.size
    assert shares == pytest.approx([0.65, 0.1, 0.25], abs=0.02), "five standard deviations"
    split = BlockSplit(size=10, val=0.2, test=0.3)
    files = {name: uses(split, name, grid_of(300, 300)) for name in ("a.tif", "b.tif", "c.tif")}
    for name in reversed(files):
        assert np.array_equal(uses(split, name, grid_of(300, 300)), files[name])
    larger = uses(split, "a.tif", grid_of(300, 500))
    assert np.array_equal(larger[:, :300], files["a.tif"]), "a file that grows keeps its blocks"
    assert 0.3 < (files["a.tif"] != files["b.tif"]).mean() < 0.9
    other = uses(split.model_copy(update={"seed": 1}), "a.tif", grid_of(300, 300))
    assert 0.3 < (files["a.tif"] != other).mean() < 0.9
    # written down, so that another version that draws otherwise is found out
    written = "test train train val val test train train"
    assert [split.use_of("a.tif", 0, col) for col in range(8)] == written.split()


# files


RECORDS = [
    {"name": "a", "split": "train", "width": 3},
    {"name": "b", "split": "val"},
    {"id": "sub/c.tif", "split": "test"},
]


def test_files_by_a_list(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps(RECORDS))
    split = FileSplit(list="split.json")
    grid = grid_of(4, 5)
    for name, use in (("a", 0), ("images/a.tif", 0), ("b.png", 1), ("sub/c.tif", 2), ("other/c.tif", -1)):
        assert (uses(split, name, grid, tmp_path) == use).all(), name
    assert regions_of(split, "a", grid, tmp_path) == {"train": [Window(0, 0, 4, 5)], "val": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps([{"name": "a", "split": "val"}] * 2))
    assert (uses(split, "a", grid, tmp_path) == 1).all(), "a list that has changed is read again"


def test_files_by_patterns() -> None:
    split = FileSplit(val=("tile3_*",), test=("tile1_*", "sets/late/*"), never=("*_part9",))
    names = ["tile4_part1", "in/tile3_part2.jpg", "tile1_part1", "sets/late/x.tif", "tile5_part9.png", "sets/x.tif"]
    expected = ["train", "val", "test", "test", None, "train"]
    assert [split.use_of(name) for name in names] == expected
    for name, use in zip(names, expected, strict=True):
        assert (uses(split, name, grid_of(4, 5)) == (-1 if use is None else USES.index(use))).all()
    with refuses("split-conflict", name="tile1_part9", one="test", other="never"):
        split.use_of("tile1_part9")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "split-list-unreadable"),
        ("[", "split-list-unreadable"),
        ('{"a": "train"}', "split-list-invalid"),
        ('[{"name": "a", "split": "dev"}]', "split-list-invalid"),
        ("[3]", "split-list-invalid"),
        ('[{"name": "a", "split": "val"}, {"name": "a", "split": "test"}]', "split-conflict"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, content: str | None, code: str) -> None:
    if content is not None:
        (tmp_path / "split.json").write_text(content)
    with refuses(code, path=tmp_path / "split.json"):
        read_list(tmp_path / "split.json")
    with pytest.raises(FcnBatchError):
        regions_of(FileSplit(list="none.json"), "a", grid_of(4, 5), tmp_path)


# regions


def _drawn(path: Path, *shapes: Any) -> Path:
    geometry = np.array(shapely.to_wkb(list(shapes)))
    pyogrio.raw.write(
        path, geometry=geometry, field_data=[], fields=[], geometry_type="Polygon", crs="EPSG:32633", driver="GPKG"
    )
    return path


TEN_METRES = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)


def _plane(*ring: tuple[float, float]) -> Any:
    """A polygon given in columns and rows."""
    return shapely.Polygon([(500000 + 10 * col, 5000000 - 10 * row) for col, row in ring])


def test_cells_go_where_their_centres_lie(tmp_path: Path) -> None:
    utm = Grid(Size(55, 68), GeoReference(wkt_of("EPSG:32633"), TEN_METRES))
    val = [_plane((5, 5), (45, 8), (30, 41)), _plane((2000, 5), (2001, 5), (2000, 9))]
    test = [_plane((30, 19), (64, 19), (64, 53), (30, 53))]
    _drawn(tmp_path / "val.gpkg", *val)
    _drawn(tmp_path / "test.gpkg", *test)
    split = RegionSplit(val="val.gpkg", test="test.gpkg", cell=8)
    use_of = uses(split, "a", utm, tmp_path)
    found: set[int] = set()
    for row in range(0, 55, 8):
        for col in range(0, 68, 8):
            bottom, right = min(row + 8, 55), min(col + 8, 68)
            ground = _plane((col, row), (right, row), (right, bottom), (col, bottom))
            centred = [any(s.contains(ground.centroid) for s in shapes) for shapes in (val, test)]
            shared = any(s.intersection(ground).area > 1e-3 for s in (*val, *test))
            expected = (0 if not shared else -1) if centred[0] == centred[1] else 1 + centred[1]
            cell = use_of[row:bottom, col:right]
            assert cell.min() == cell.max() == expected, (row, col)
            found.add(expected)
    assert found == {-1, 0, 1, 2}
    _drawn(tmp_path / "far.gpkg", val[1])
    far = RegionSplit(val="far.gpkg", test="far.gpkg")
    assert (uses(far, "a", utm, tmp_path) == 0).all(), "a file without polygons is trained on"
    with pytest.raises(FcnBatchError):
        regions_of(RegionSplit(val="none.gpkg", test="val.gpkg"), "a", utm, tmp_path)


# what is refused


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"by": "files", "list": "split.json"}, FileSplit),
        ({"by": "strips", "width": 3, "val": [1], "test": [2]}, StripSplit),
        ({"by": "blocks", "size": 256, "val": 0.1, "test": 0.1}, BlockSplit),
        ({"by": "regions", "val": "v.gpkg", "test": "t.gpkg"}, RegionSplit),
    ],
)
def test_the_kind_is_chosen_by_its_name(values: dict[str, Any], kind: type[Any]) -> None:
    split = TypeAdapter[Split](Split).validate_python(values)
    assert isinstance(split, kind)
    with pytest.raises(ValidationError):
        split.by = "x"
    with pytest.raises(ValidationError):
        TypeAdapter(Split).validate_python({**values, "widht": 3})


@pytest.mark.parametrize(
    "values",
    [
        {"by": "files"},
        {"by": "files", "list": "a.json", "val": ["b"]},
        {"by": "files", "val": ["b"]},
        {"by": "blocks", "size": 4, "val": 0.5, "test": 0.5},
        {"by": "blocks", "size": 0, "val": 0.5, "test": 0.1},
        {"by": "strips", "width": 3, "val": [1], "test": [1]},
        {"by": "strips", "width": 3, "val": [1], "test": [2], "score_rows": [4, 4]},
        {"by": "chance"},
    ],
    ids=str,
)
def test_splits_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Split).validate_python(values)
