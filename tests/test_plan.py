"""Everything is decided before anything is computed, and what cannot be decided is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from fcn_batch.pipeline.blending import Blend
from fcn_batch.pipeline.errors import FcnBatchError, InputError, OptionError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.geometry import Size
from fcn_batch.pipeline.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.model_card import Architecture, Band, InputSpec
from fcn_batch.pipeline.plan import FileIdentity
from fcn_batch.pipeline.raster import RasterInfo
from fcn_batch.workflows.bands import band_notes, choose_bands, choose_full_scale
from fcn_batch.workflows.plan import (
    Options,
    Prepared,
    choose_cut,
    describe,
    ground_sample_distance,
    prepare,
)
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import DEGREES, fcn_batch, scene, small_blocks, tree

RGB = InputSpec(bands=tuple(Band(name=n, mean=0.4, std=0.2) for n in ("red", "green", "blue")), gsd_m=10)
GRAY = InputSpec(bands=(Band(name="gray", mean=0.4, std=0.2),), gsd_m=10)
SENTINEL = InputSpec(
    bands=tuple(Band(name=n, mean=0.1, std=0.1) for n in ("nir", "red")), gsd_m=10, dtype="uint16", full_scale=10000
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(scope="module")
def network() -> Fcn:
    """FCN-8s with stride 32 and halo 160."""
    return Fcn(Architecture(width=0.02, fc_channels=4, fc_kernel=3), bands=3, classes=6)


def info(roles: Sequence[str], descriptions: Sequence[str | None] | None = None, dtype: str = "uint8") -> RasterInfo:
    return RasterInfo(
        path="/data/a.tif",
        files=("/data/a.tif",),
        size=Size(100, 100),
        bands=len(roles),
        dtype=dtype,
        georeference=GeoReference(None, IDENTITY),
        descriptions=tuple(descriptions or [None] * len(roles)),
        colour_roles=tuple(roles),
        storage_block=(1, 100),
        has_mask=False,
        has_gcps=False,
    )


@pytest.mark.parametrize(
    ("raster", "spec", "bands"),
    [
        (info(["red", "green", "blue"]), RGB, (1, 2, 3)),
        (info(["blue", "green", "red"]), RGB, (3, 2, 1)),
        (info(["alpha", "red", "green", "blue"]), RGB, (2, 3, 4)),
        (info(["blue", "green", "red", "undefined"]), RGB, (3, 2, 1)),
        (info(["gray"] + ["undefined"] * 4, ["B", "blue", "Green", "RED", None]), RGB, (4, 3, 2)),
        (info(["red", "green", "blue", "undefined"], [None, None, None, "NIR"]), SENTINEL, None),
        (info(["gray", "undefined"], ["Red", "NIR"]), SENTINEL, (2, 1)),
        (info(["gray", "undefined", "undefined"]), RGB, (1, 2, 3)),
        (info(["gray", "undefined", "alpha", "undefined"]), RGB, (1, 2, 4)),
        (info(["red", "green", "blue"], ["blue", "green", "red"]), RGB, (1, 2, 3)),  # roles go first
    ],
)
def test_bands_by_role_by_description_or_in_order(
    raster: RasterInfo, spec: InputSpec, bands: tuple[int, ...] | None
) -> None:
    if bands is not None:
        assert choose_bands(raster, spec, None) == bands
    else:
        with pytest.raises(InputError, match=r"cannot tell which of its 4 bands are nir, red; .* --bands 1,2"):
            choose_bands(raster, spec, None)


@pytest.mark.parametrize("roles", [["gray"], ["gray", "alpha"], ["undefined"] * 4, ["red", "green"]])
def test_bands_that_cannot_be_told_are_asked_for(roles: list[str]) -> None:
    with pytest.raises(InputError, match=rf"/data/a\.tif: cannot tell which of its {len(roles)} bands are red, green"):
        choose_bands(info(roles), RGB, None)


def test_the_proposed_bands_are_accepted() -> None:
    raster = info(["gray"])
    with pytest.raises(InputError, match="--bands 1,1,1"):
        choose_bands(raster, RGB, None)
    assert choose_bands(raster, RGB, (1, 1, 1)) == (1, 1, 1)


def test_proposed_bands_are_never_alpha() -> None:
    for roles, proposed in ((["alpha", "gray"], "2,2,2"), (["gray", "alpha", "undefined"], "1,3,3")):
        with pytest.raises(InputError, match=f"say it with --bands, e.g. --bands {proposed}$"):
            choose_bands(info(roles), RGB, None)
    with pytest.raises(InputError, match=r"say it with --bands$"):
        choose_bands(info(["alpha"]), RGB, None)


@pytest.mark.parametrize("roles", [["palette"], ["palette", "alpha"], ["palette", "undefined", "undefined"]])
def test_a_palette_is_to_be_expanded(roles: list[str]) -> None:
    with pytest.raises(InputError, match=r"numbers of colours in a palette.* gdal_translate -expand rgb IN OUT$"):
        choose_bands(info(roles), RGB, None)
    assert choose_bands(info(["palette"]), GRAY, None) == (1,)


@pytest.mark.parametrize(
    ("raster", "spec", "wanted", "note"),
    [
        (info(["red", "green", "blue"]), RGB, None, None),
        (info(["gray"] + ["undefined"] * 2, ["blue", "green", "red"]), RGB, None, None),
        (info(["gray"] + ["undefined"] * 2), RGB, (1, 2, 3), None),
        (info(["gray", "alpha", "undefined", "undefined"]), RGB, None, "bands 1,3,4 are taken as red, green, blue"),
        (info(["undefined", "undefined"], ["NIR", None]), SENTINEL, None, "bands 1,2 are taken as nir, red"),
        (info(["alpha", "undefined"]), GRAY, None, "band 2 is taken as gray"),
    ],
)
def test_bands_taken_in_order_are_noted(
    raster: RasterInfo, spec: InputSpec, wanted: tuple[int, ...] | None, note: str | None
) -> None:
    said = [f"{note}: nothing in the file says so; --bands chooses others"] if note else []
    assert band_notes(raster, spec, wanted) == said


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1, 2), r"--bands 1,2: the model wants 3 bands \(red, green, blue\), got 2"),
        ((1, 2, 3, 4), r"--bands 1,2,3,4: the model wants 3"),
        ((1, 2, 4), r"--bands 1,2,4: /data/a\.tif has bands 1 to 3, not 4"),
        ((0, 1, 2), r"--bands 0,1,2: .* not 0"),
        ((1, -2, 3), r"not -2"),
    ],
)
def test_bands_that_do_not_fit_are_refused(wanted: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_bands(info(["red", "green", "blue"]), RGB, wanted)


def test_asked_bands_go_before_names() -> None:
    assert choose_bands(info(["red", "green", "blue"]), RGB, (3, 2, 1)) == (3, 2, 1)


def test_white_is_the_models_when_the_types_agree() -> None:
    assert choose_full_scale(info(["gray"]), RGB, None) == 255
    assert choose_full_scale(info(["gray"], dtype="uint16"), SENTINEL, None) == 10000
    assert choose_full_scale(info(["gray"], dtype="float32"), RGB, 1.0) == 1
    assert choose_full_scale(info(["gray"]), RGB, 200.0) == 200


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_white_is_asked_for_when_the_types_differ(dtype: str) -> None:
    with pytest.raises(InputError, match=f"pixels are {dtype}, the model was trained on uint8 up to 255; .*--full-sc"):
        choose_full_scale(info(["gray"], dtype=dtype), RGB, None)


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan"), float("inf")])
def test_white_is_a_positive_number(wanted: float) -> None:
    with pytest.raises(OptionError, match=f"--full-scale {wanted}: give a positive number"):
        choose_full_scale(info(["gray"]), RGB, wanted)


@pytest.mark.parametrize("wanted", [1e-320, 5e-324, 1e-38])
def test_a_white_that_32_bits_cannot_divide_by_is_refused(wanted: float) -> None:
    with pytest.raises(OptionError, match=f"--full-scale {wanted}: too small to divide 32-bit numbers by; give the"):
        choose_full_scale(info(["gray"]), RGB, wanted)
    assert choose_full_scale(info(["gray"]), RGB, 1e-37) == 1e-37


def test_an_exact_cut_has_the_halo_and_whole_chunks(network: Fcn) -> None:
    notes: list[str] = []
    cut = choose_cut(network, Options(model="m"), notes)
    assert (cut.chunk, cut.block, cut.overlap, cut.stride, cut.blend) == (2048, 4096, 160, 32, None)
    assert cut.exact
    assert cut.block % cut.tile == 0
    assert notes == []


def test_blocks_grow_with_the_halo() -> None:
    wide = Fcn(Architecture(width=0.02, fc_channels=4, fc_kernel=15), bands=3, classes=2)
    deep = Fcn(Architecture(width=0.02, fc_channels=4, input_upsampling=4), bands=3, classes=2)
    for network in (wide, deep):
        cut = choose_cut(network, Options(model="m"), [])
        assert (cut.overlap, cut.stride) == (network.halo, network.stride)
        assert cut.block >= 8 * network.halo
        assert cut.block % cut.chunk == 0


def test_the_default_tile_is_what_the_memory_holds(network: Fcn, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, tile in ((2**50, 4096), (network.bytes_per_pixel * (1024 + 320) ** 2, 1024), (1, 128)):
        monkeypatch.setattr("fcn_batch.workflows.plan._TILE_BYTES", limit)
        assert choose_cut(network, Options(model="m"), []).tile == tile


def test_what_is_rounded_is_said(network: Fcn) -> None:
    notes: list[str] = []
    assert choose_cut(network, Options(model="m", tile=500), notes).tile == 512
    assert notes == ["--tile 500 was rounded up to 512, a multiple of the model's stride 32"]
    notes.clear()
    cut = choose_cut(network, Options(model="m", tile=512, overlap=65, blend="linear"), notes)
    assert (cut.tile, cut.overlap, cut.blend) == (512, 96, "linear")
    assert notes[0] == "--overlap 65 was rounded up to 96, a multiple of the model's stride 32"
    assert notes[1].startswith("approximate: tiles of 512 overlap by 96 and are blended (linear)")


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (8192, None, "--tile 8192: at most the block of 4096 pixels"),
        (4097, None, r"--tile 4097 \(rounded up to 4128\): at most the block"),
        (8192, 32, "--tile 8192: at most the block of 4096 pixels"),
        (4097, 0, r"--tile 4097 \(rounded up to 4128\): at most the block of 4096 pixels"),
        (0, None, "--tile 0: give a positive number"),
        (-32, None, "--tile -32: give a positive number"),
        (512, 288, "--overlap 288: at most half of the tile of 512"),
        (None, 544, "--overlap 544: at most half of the tile of 1024; give a larger --tile"),
        (512, 257, r"--overlap 257 \(rounded up to 288\): at most half of the tile of 512"),
        (512, -1, "--overlap -1: give 0 or more pixels"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(network: Fcn, tile: int | None, overlap: int | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_cut(network, Options(model="m", tile=tile, overlap=overlap), [])


def test_a_blend_needs_an_overlap(network: Fcn) -> None:
    with pytest.raises(OptionError, match="--blend linear: the exact result has nothing to blend; give --overlap"):
        choose_cut(network, Options(model="m", blend="linear"), [])


def test_no_overlap_and_half_a_tile_are_the_ends(network: Fcn) -> None:
    assert choose_cut(network, Options(model="m", tile=512, overlap=0), []).overlap == 0
    assert choose_cut(network, Options(model="m", tile=512, overlap=256), []).overlap == 256


def seen_by_the_network(prepared: Prepared) -> int:
    """Pixels of all passes, counted tile by tile."""
    cut, size = prepared.plan.cut, prepared.info.size
    seen = 0
    for top in range(0, size.height, cut.block):
        for left in range(0, size.width, cut.block):
            bottom, right = min(top + cut.block, size.height), min(left + cut.block, size.width)
            if cut.exact:
                starts = [(r, c) for r in range(top, bottom, cut.tile) for c in range(left, right, cut.tile)]
                reads = [
                    (max(r - cut.overlap, 0), min(min(r + cut.tile, bottom) + cut.overlap, size.height),
                     max(c - cut.overlap, 0), min(min(c + cut.tile, right) + cut.overlap, size.width))
                    for r, c in starts
                ]  # fmt: skip
            else:
                step = cut.tile - cut.overlap
                reads = [
                    (r, min(r + cut.tile, size.height), c, min(c + cut.tile, size.width))
                    for r in range(0, max(size.height - cut.overlap, 1), step)
                    for c in range(0, max(size.width - cut.overlap, 1), step)
                    if r < bottom and r + cut.tile > top and c < right and c + cut.tile > left
                ]
            seen += sum(-(-(b - t) // 32) * 32 * (-(-(r - le) // 32) * 32) for t, b, le, r in reads)
    return seen


@pytest.mark.parametrize(
    ("tile", "overlap", "blend"),
    [(None, None, None), (64, None, None), (96, 32, "hann"), (128, 64, "none"), (64, 0, "linear")],
)
@pytest.mark.parametrize("size", [(300, 330), (128, 129), (1, 1), (7, 500)])
def test_the_stated_cost_is_that_of_counting(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    tile: int | None,
    overlap: int | None,
    blend: Blend | None,
) -> None:
    small_blocks(monkeypatch)
    path = write_raster(tmp_path / "a.tif", noise(3, *size), photometric="RGB")
    prepared = prepare(path, Options(model=str(model), tile=tile, overlap=overlap, blend=blend))
    assert prepared.plan.cut.stride == 32
    assert prepared.forward_share == seen_by_the_network(prepared) / (size[0] * size[1])
    assert prepared.memory > 0


@pytest.mark.parametrize(("tile", "rows"), [(128, 128), (64, 64)])
def test_blended_sums_are_in_the_memory(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tile: int, rows: int
) -> None:
    small_blocks(monkeypatch)
    path = write_raster(tmp_path / "a.tif", noise(3, 300, 100), photometric="RGB")
    more = save_tiny_model(tmp_path / "more.safetensors", fc_kernel=1, classes=16)

    def memory(file: Path, overlap: int | None) -> int:
        prepared = prepare(path, Options(model=str(file), tile=tile, overlap=overlap))
        return replace(prepared, bytes_per_pixel=0).memory

    assert memory(more, None) == memory(model, None)
    assert memory(more, 32) - memory(model, 32) == 2 * 4 * (16 - 6) * rows * 100  # two rows of tiles, all columns


def notes_of(path: Path, model: Path, **options: Any) -> list[str]:
    return prepare(path, Options(model=str(model), **options)).notes


def test_notes_say_what_is_missing(tmp_path: Path, model: Path) -> None:
    assert notes_of(scene(tmp_path / "a.tif", 50, 60), model) == []
    (note,) = notes_of(write_raster(tmp_path / "b.tif", noise(3, 5, 6)), model)
    assert "no coordinate reference system" in note
    points = [GroundControlPoint(row=r, col=c, x=c, y=-r, z=0) for r, c in ((0, 0), (5, 0), (0, 6))]
    gray = {"crs": "EPSG:4326", "transform": DEGREES, "photometric": "MINISBLACK"}
    (note,) = notes_of(write_raster(tmp_path / "d.tif", noise(3, 5, 6), **gray), model)
    assert note == "bands 1,2,3 are taken as red, green, blue: nothing in the file says so; --bands chooses others"
    (note,) = notes_of(write_raster(tmp_path / "c.tif", noise(3, 5, 6), gcps=points, crs="EPSG:4326"), model)
    assert "ground control points" in note


@pytest.mark.parametrize(("metres", "said"), [(3400, True), (3600, False), (13900, False), (14100, True)])
def test_a_resolution_beyond_twice_or_half_is_noted(tmp_path: Path, model: Path, metres: int, said: bool) -> None:
    transform = Affine(metres, 0, 500000, 0, -metres, 5000000)
    path = write_raster(tmp_path / "a.tif", noise(3, 5, 6), crs="EPSG:32633", transform=transform)
    notes = notes_of(path, model)
    assert len(notes) == said
    if said:
        assert "was trained at 7000 m per pixel, this raster has" in notes[0]


def test_the_sample_distance_is_that_of_the_middle_row() -> None:
    degrees = GeoReference('GEOGCRS["sphere",DATUM["d",ELLIPSOID["s",6371007,0]],CS[ellipsoidal,2],'
                           'AXIS["lat",north],AXIS["lon",east],ANGLEUNIT["degree",0.0174532925199433]]',
                           (0.1, 0.0, 0.0, 0.0, -0.1, 65.0))  # fmt: skip
    raster = replace(info(["gray"]), georeference=degrees)
    # the middle of 100 rows of 0.1 degrees from 65 north down is 60 north, where a degree is half as wide
    assert ground_sample_distance(raster) == pytest.approx(11119.5 * 0.5**0.5, rel=2e-3)
    assert ground_sample_distance(info(["gray"])) is None


def test_a_plan_knows_its_input_and_its_model(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    prepared = prepare(path, Options(model=str(model)))
    plan, status = prepared.plan, path.stat()
    assert plan.input.path == str(path)
    assert plan.input.files == (FileIdentity(name="a.tif", bytes=status.st_size, modified_ns=status.st_mtime_ns),)
    assert (plan.input.height, plan.input.width, plan.input.bands, plan.input.dtype) == (50, 60, 3, "uint8")
    assert plan.model.path == str(model)
    assert plan.bands == (1, 2, 3)
    assert plan == prepare(path, Options(model=str(model))).plan
    labels = [label for label, _ in describe(prepared)]
    assert {"input", "crs", "model", "bands", "result", "blocks", "tiles", "cost", "memory", "device"} <= set(labels)


def test_another_model_is_another_plan(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    other = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1, seed=1)
    first, second = (prepare(path, Options(model=str(m))).plan for m in (model, other))
    assert [d.split(":")[0] for d in first.differences(second)] == ["model.sha256"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_plan_prints_and_makes_nothing(tmp_path: Path, model: Path, form: list[str]) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    before = tree(tmp_path)
    result = fcn_batch("plan", path, "-m", model, *form)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert str(path) in result.stdout
    assert tree(tmp_path) == before


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", ""])
def test_devices_that_are_not_there_are_refused(tmp_path: Path, model: Path, device: str) -> None:
    with pytest.raises(FcnBatchError, match=f"--device {device}: .*auto") as caught:
        prepare(scene(tmp_path / "a.tif", 50, 60), Options(model=str(model), device=device))
    assert caught.value.exit_code == 2
