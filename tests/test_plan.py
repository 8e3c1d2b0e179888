"""Everything is decided before anything is computed, and what cannot be decided is asked for."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec
from fcn_batch.pipeline.core.plan import FileIdentity, Precision
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.weights import read_card
from fcn_batch.workflows.blocks.cut import Network, Room, Wish, choose_cut, memory
from fcn_batch.workflows.description import describe
from fcn_batch.workflows.inputs.bands import band_notes, choose_bands, choose_full_scale
from fcn_batch.workflows.inputs.resolution import ground_sample_distance
from fcn_batch.workflows.plan import Options, choose_precision, choose_threads, prepare
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.processors import needs_bf16
from tests.rasters import noise, write_raster
from tests.runs import DEGREES, fcn_batch, scene, tree
from tests.sources import info_of

RGB = InputSpec(bands=tuple(Band(name=n, mean=0.4, std=0.2) for n in ("red", "green", "blue")), gsd_m=10)
GRAY = InputSpec(bands=(Band(name="gray", mean=0.4, std=0.2),), gsd_m=10)
SENTINEL = InputSpec(
    bands=tuple(Band(name=n, mean=0.1, std=0.1) for n in ("nir", "red")), gsd_m=10, dtype="uint16", full_scale=10000
)


POINTS = [GroundControlPoint(row=r, col=c, x=c, y=-r, z=0) for r, c in ((0, 0), (5, 0), (0, 6))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


GIB = 2**30
ROOM = Room(bytes=4 * GIB, processes=1, kind="cpu")


def network_of(architecture: Architecture, classes: int = 6) -> Network:
    """What the cut wants to know of an FCN."""
    network = Fcn(architecture, bands=3, classes=classes)
    graph, obstacles = graph_of(network, 3)
    assert graph is not None
    return Network(
        bands=3,
        classes=classes,
        stride=network.stride,
        halo=network.halo,
        graph=graph.bare(),
        obstacles=tuple(obstacles),
        weights=sum(p.numel() * 4 for p in network.parameters()),
        itemsize=4,
    )


@pytest.fixture(scope="module")
def network() -> Network:
    """FCN-8s with stride 32 and halo 160."""
    return network_of(Architecture(width=0.02, fc_channels=4, fc_kernel=3))


def sized(height: int, width: int) -> RasterInfo:
    return replace(info(["red", "green", "blue"]), size=Size(height, width), storage_block=(1, width))


def info(roles: Sequence[str], descriptions: Sequence[str | None] | None = None, dtype: str = "uint8") -> RasterInfo:
    known = info_of(Size(100, 100), bands=len(roles), dtype=dtype)
    labels = tuple(descriptions or [None] * len(roles))
    return replace(known, descriptions=labels, colour_roles=tuple(roles))


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
        (info(["red", "green", "blue"], ["blue", "green", "red"]), RGB, (3, 2, 1)),  # GDAL's default roles
    ],
)
def test_bands_by_description_by_role_or_in_order(
    raster: RasterInfo, spec: InputSpec, bands: tuple[int, ...] | None
) -> None:
    with nullcontext() if bands else pytest.raises(InputError):
        assert choose_bands(raster, spec, None) == bands


@pytest.mark.parametrize(
    ("roles", "proposed"),
    [
        (["gray"], "1,1,1"),
        (["gray", "alpha"], "1,1,1"),
        (["undefined"] * 4, "1,2,3"),
        (["red", "green"], "1,2,2"),
        (["alpha", "gray"], "2,2,2"),
        (["gray", "alpha", "undefined"], "1,3,3"),
        (["alpha"], None),
        (["palette"], None),
        (["palette", "alpha"], None),
        (["palette", "undefined", "undefined"], None),
    ],
)
def test_bands_that_cannot_be_told_are_asked_for(roles: list[str], proposed: str | None) -> None:
    """What is proposed is never alpha, and is accepted; a palette is to be expanded, but as one band."""
    with pytest.raises(InputError) as caught:
        choose_bands(info(roles), RGB, None)
    if roles[0] == "palette":
        assert choose_bands(info(["palette"]), GRAY, None) == (1,)
        return
    assert re.findall(r"--bands (\d[\d,]*)", str(caught.value)) == ([proposed] if proposed else [])
    if proposed:
        numbers = tuple(map(int, proposed.split(",")))
        assert choose_bands(info(roles), RGB, numbers) == numbers


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


@pytest.mark.parametrize("wanted", [(1, 2), (1, 2, 3, 4), (1, 2, 4), (0, 1, 2), (1, -2, 3)])
def test_bands_that_do_not_fit_are_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(OptionError):
        choose_bands(info(["red", "green", "blue"]), RGB, wanted)
    assert choose_bands(info(["red", "green", "blue"]), RGB, (3, 2, 1)) == (3, 2, 1)


@pytest.mark.parametrize(
    ("dtype", "spec", "wanted", "expected"),
    [
        ("uint8", RGB, None, 255),
        ("uint16", SENTINEL, None, 10000),
        ("float32", RGB, 1.0, 1),
        ("uint8", RGB, 200.0, 200),
        ("uint8", RGB, 1e-37, 1e-37),
        *((dtype, RGB, None, InputError) for dtype in ("uint16", "int16", "float32")),
        *(("uint8", RGB, bad, OptionError) for bad in (0.0, -1.0, float("nan"), float("inf"), 1e-320, 5e-324, 1e-38)),
    ],
)
def test_white_is_the_models_when_the_types_agree_or_asked_for(
    dtype: str, spec: InputSpec, wanted: float | None, expected: Any
) -> None:
    """A positive number that 32 bits can divide by."""
    with pytest.raises(expected) if isinstance(expected, type) else nullcontext():
        assert choose_full_scale(info(["gray"], dtype=dtype), spec, wanted) == expected


def test_strips_have_the_pixels_that_a_device_likes(network: Network) -> None:
    for kind, pixels in (("cpu", 2**19), ("mps", 2**20), ("cuda", 2**23)):
        cut = choose_cut(network, sized(20000, 9000), Wish(), replace(ROOM, bytes=64 * GIB, kind=kind), [])
        columns = -(-9000 // 32) * 32
        assert cut.tile % 32 == 0
        assert cut.tile * columns <= pixels < (cut.tile + 32) * columns
    assert choose_cut(network, sized(20000, 10**6), Wish(), replace(ROOM, bytes=64 * GIB), []).tile == 32
    assert choose_cut(network, sized(70, 80), Wish(), ROOM, []).tile == 96, "no higher than the raster"


def test_other_grids(network: Network) -> None:
    for architecture in (
        Architecture(width=0.02, fc_channels=4, fc_kernel=15),
        Architecture(width=0.02, fc_channels=4, input_upsampling=4),
    ):
        other = network_of(architecture)
        assert other.halo is not None
        cut = choose_cut(other, sized(30000, 3000), Wish(), replace(ROOM, processes=64), [])
        assert (cut.overlap, cut.stride) == (other.halo, other.stride)
        assert cut.segment >= 16 * other.halo
        assert cut.segment % cut.chunk == cut.chunk % other.stride == 0
    assert network.stride == 32


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 64])
def test_segments_keep_all_processes_busy_but_not_with_halos(network: Network, processes: int) -> None:
    for height in (100, 2500, 40000, 10**6):
        cut = choose_cut(network, sized(height, 9000), Wish(), replace(ROOM, processes=processes), [])
        many = -(-height // cut.segment)
        assert many <= 2 * processes if processes > 1 else many == 1
        assert cut.segment >= min(height, 16 * 160)
        longest = max(2048, 16 * 160, height / processes)
        assert many > processes or processes == 1 or cut.segment - cut.chunk < longest


@pytest.mark.parametrize("wish", [Wish(), Wish(tile=512), Wish(tile=512, overlap=64)])
def test_too_little_memory_is_refused(network: Network, wish: Wish) -> None:
    raster = sized(30000, 70000)
    with pytest.raises(OptionError) as found:
        choose_cut(network, raster, wish, replace(ROOM, bytes=4 * 10**6), [])
    assert (found.value.code, found.value.fields["given"]) == ("memory-short", "4 MB")
    needed = int(found.value.fields["needed"].removesuffix(" MB").replace(",", "")) * 10**6
    cut = choose_cut(network, raster, wish, replace(ROOM, bytes=needed), [])
    assert memory(network, raster, cut) <= needed


def test_what_cannot_be_streamed_goes_in_tiles_and_says_why(network: Network) -> None:
    stuck = replace(network, graph=None, obstacles=("layer.4: grid_sample (not known)", "layer.5: erfinv (not known)"))
    raster, notes, tiles = sized(5000, 9000), list[str](), list[int]()
    cut = choose_cut(stuck, raster, Wish(), ROOM, notes)
    assert (cut.way, cut.overlap, cut.exact) == ("tiles", 160, True)
    assert ["layer.4: grid_sample (not known)" in note for note in notes] == [True]
    for megabytes in (60000, 2000, 1000, 800, 700, 500):
        room = replace(ROOM, bytes=megabytes * 10**6)
        cut = choose_cut(stuck, raster, Wish(), room, [])
        assert memory(stuck, raster, cut) <= room.bytes
        assert cut.tile == 2048 or memory(stuck, raster, cut.model_copy(update={"tile": 2 * cut.tile})) > room.bytes
        tiles.append(cut.tile)
    assert tiles == sorted(tiles, reverse=True)
    assert tiles[0] == 2048 > tiles[-1]


def test_what_is_rounded_is_said(network: Network) -> None:
    notes: list[str] = []
    raster = sized(5000, 9000)
    assert choose_cut(network, raster, Wish(tile=500), ROOM, notes).tile == 512
    assert ["--tile 500" in note and "512" in note for note in notes] == [True]
    notes.clear()
    cut = choose_cut(network, raster, Wish(tile=512, overlap=65, blend="linear"), ROOM, notes)
    assert (cut.tile, cut.overlap, cut.blend) == (512, 96, "linear")
    assert "--overlap 65" in notes[0]
    assert notes[1].startswith("windows: the map is the blend (linear) of windows of 512 px that overlap by 96")


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (Wish(0), "option-value"),
        (Wish(-32), "option-value"),
        (Wish(10**6), "memory-short"),
        (Wish(10**6, 32), "memory-short"),
        (Wish(512, 288), "option-value"),
        (Wish(None, 544), "option-value"),
        (Wish(512, 257), "option-value"),
        (Wish(512, -1), "option-value"),
        (Wish(blend="linear"), "blend-without-overlap"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(network: Network, wish: Wish, code: str) -> None:
    """No overlap and half a tile are the ends."""
    with refuses(code):
        choose_cut(network, sized(5000, 9000), wish, ROOM, [])
    for overlap in (0, 256):
        assert choose_cut(network, sized(5000, 9000), Wish(512, overlap), ROOM, []).overlap == overlap


@pytest.mark.parametrize("tile", [128, 64])
def test_blended_sums_are_in_the_memory(network: Network, tile: int) -> None:
    """Nothing else of a blended cut depends on the number of classes, when a tile costs nothing."""
    raster = sized(300, 100)

    def of(classes: int, overlap: int | None) -> int:
        class Free(Network):
            def bytes_of(self, rows: int, cols: int) -> int:
                return 0 * rows * cols

        other = Free(**{f.name: getattr(network, f.name) for f in fields(network)} | {"classes": classes})
        return memory(other, raster, choose_cut(other, raster, Wish(tile, overlap), ROOM, []))

    assert of(16, None) == of(6, None)
    # sums of a row of tiles and what they are made of and into, over all columns that its tiles see
    assert of(16, 32) - of(6, 32) == 4 * 4 * (16 - 6) * (tile + 32) * min(100 + 2 * tile, 128)


def test_the_memory_counts_what_there_is_more_of(network: Network) -> None:
    raster = sized(30000, 20000)
    cut = choose_cut(network, raster, Wish(), ROOM, [])
    least = memory(network, raster, cut)
    assert memory(replace(network, weights=network.weights + 10**6), raster, cut) == least + 2 * 10**6
    for more in ({"tile": 2 * cut.tile}, {"lane": cut.lane // 2 // 2048 * 2048}, {"chunk": 1024}):
        other = memory(network, raster, cut.model_copy(update=more))
        assert (other > least) == ("tile" in more)
    assert memory(network, replace(raster, dtype="float32"), cut) > memory(network, replace(raster, dtype="int16"), cut)
    assert memory(network, replace(raster, dtype="int16"), cut) > least


# --- what the machine decides --------------------------------------------------------------------------------


def test_the_memory_by_default_is_half_of_what_is_free(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[Room] = []

    def noted(*arguments: Any) -> Any:
        rooms.append(arguments[3])
        return choose_cut(*arguments)

    monkeypatch.setattr("fcn_batch.workflows.plan.choose_cut", noted)
    monkeypatch.setattr("fcn_batch.workflows.plan.free_memory", lambda _device: 16 * GIB)
    path = scene(tmp_path / "a.tif", 50, 60)
    for processes, asked in ((1, None), (4, None), (None, None), (16, None), (4, 3 * GIB)):
        prepare(path, Options(model=str(model), memory=asked), processes=processes)
    assert [room.bytes / GIB for room in rooms] == [8, 2, 8, 1, 3], "at least 1 GiB each"
    assert [room.processes for room in rooms] == [1, 4, 8, 16, 4], "as if a cluster had eight"
    assert {room.kind for room in rooms} == {"cpu"}


def test_threads_are_shared_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.plan.available_cpus", lambda: 8)
    assert [choose_threads(None, "cpu", n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert [choose_threads(5, "cpu", n) for n in (1, 4)] == [5, 5]
    assert choose_threads(5, "cuda:0", 1) == choose_threads(None, "mps", 1) == 1
    for wrong in (0, -1, 33):
        with refuses("option-value", option="--threads", value=wrong, most=32):
            choose_threads(wrong, "cpu", 1)


@pytest.mark.parametrize(
    ("fast", "measured", "precision"),
    [
        ("bf16", None, "fp32"),  # nobody knows what it changes
        ("bf16", 0.0, "bf16"),
        ("bf16", 0.005, "bf16"),
        ("bf16", 0.0051, "fp32"),
        ("fp32", 0.0, "fp32"),
    ],
)
def test_the_precision_by_default(
    monkeypatch: pytest.MonkeyPatch, model: Path, fast: Precision, measured: float | None, precision: Precision
) -> None:
    monkeypatch.setattr("fcn_batch.workflows.plan.fast_precision", lambda _device: fast)
    card = read_card(model).card.model_copy(update={"bf16_disagreement": measured})
    assert choose_precision(None, "cpu", card) == precision
    assert [choose_precision(asked, "cuda:0", card) for asked in get_args(Precision)] == list(get_args(Precision))
    with pytest.raises(OptionError):
        choose_precision("fp16", "cpu", card)


@needs_bf16
def test_the_precision_is_part_of_the_plan(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    full, half = (prepare(path, Options(model=str(model), precision=p)) for p in ("fp32", "bf16"))
    assert (full.plan.kernel.precision, half.plan.kernel.precision) == ("fp32", "bf16")
    assert full.plan.fingerprint != half.plan.fingerprint
    assert full.network.itemsize == 2 * half.network.itemsize == 4
    assert half.memory < full.memory


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"crs": "EPSG:4326", "transform": DEGREES, "photometric": "RGB"}, ""),
        ({"photometric": "RGB"}, "coordinate reference system"),
        ({"crs": "EPSG:4326", "transform": DEGREES, "photometric": "MINISBLACK"}, "bands 1,2,3"),
        ({"crs": "EPSG:4326", "gcps": POINTS, "photometric": "RGB"}, "ground control points"),
    ],
)
def test_notes_say_what_is_missing(tmp_path: Path, model: Path, profile: dict[str, Any], told: str) -> None:
    notes = prepare(write_raster(tmp_path / "a.tif", noise(3, 5, 6), **profile), Options(model=str(model))).notes
    assert [told in note for note in notes] == [True] * bool(told)


@pytest.mark.parametrize(("metres", "said"), [(3400, True), (3600, False), (13900, False), (14100, True)])
def test_a_resolution_beyond_twice_or_half_is_noted(tmp_path: Path, model: Path, metres: int, said: bool) -> None:
    transform = Affine(metres, 0, 500000, 0, -metres, 5000000)
    path = write_raster(tmp_path / "a.tif", noise(3, 5, 6), crs="EPSG:32633", transform=transform)
    assert ["7 km per pixel" in note for note in prepare(path, Options(model=str(model))).notes] == [True] * said


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
    plan, status, asked = prepared.plan, path.stat(), prepared.plan.input
    assert (asked.height, asked.width, asked.bands, asked.dtype, asked.path) == (50, 60, 3, "uint8", str(path))
    assert asked.files == (FileIdentity(name="a.tif", bytes=status.st_size, modified_ns=status.st_mtime_ns),)
    assert (plan.model.path, plan.bands) == (str(model), (1, 2, 3))
    assert plan == prepare(path, Options(model=str(model))).plan
    shown = {"input", "crs", "model", "bands", "result", "way", "lanes", "blocks", "cost", "memory", "device"}
    assert shown <= {label for label, _ in describe(prepared)}
    other = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1, seed=1)
    changed = prepare(path, Options(model=str(other))).plan
    assert [d.split(":")[0] for d in plan.differences(changed)] == ["model.sha256"]
    for device in ("tpu", "cuda:99", "meta", ""):
        with pytest.raises(OptionError):
            prepare(path, Options(model=str(model), device=device))


def test_plan_prints_and_makes_nothing(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 50, 60)
    before = tree(tmp_path)
    for form in ([], ["--json"]):
        result = fcn_batch("plan", path, "-m", model, *form)
        assert (result.exit_code, result.stderr, str(path) in result.stdout) == (0, "", True)
        assert tree(tmp_path) == before
