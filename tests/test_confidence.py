"""How sure the network is: as softmax over the whole image says, in every way, and the classes stay what they were."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.blending import axis_weights
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.plan import Cut, Precision
from fcn_batch.pipeline.core.tiling import Axis, Work
from fcn_batch.pipeline.network import confidence as confidence_module
from fcn_batch.pipeline.network.capture import capture
from fcn_batch.pipeline.network.confidence import SCALE, confidence_bytes, confidence_planes
from fcn_batch.pipeline.network.device import multiplies_bf16
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.predictor import Decided, Scaling, Strips, choose, make_tiles
from fcn_batch.pipeline.network.stream import RowStream
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.store.classstore import ConfidenceStore
from fcn_batch.workflows import segment as segment_module
from fcn_batch.workflows.blocks.blended import blended
from fcn_batch.workflows.blocks.cut import Network, memory
from fcn_batch.workflows.blocks.job import JobTicket, open_job
from fcn_batch.workflows.blocks.passes import Band, Pass, stream, tiles
from fcn_batch.workflows.outputs.stitch import create_store
from fcn_batch.workflows.plan import Options, prepare
from fcn_batch.workflows.processes.execute import execute
from tests.models import save_tiny_model
from tests.runs import class_map, fcn_batch, scene, segmented, small_blocks
from tests.sources import SPEC, ArraySource, info_of, make_pass, memory_raster, whole_scores

Planes = NDArray[np.uint8]
CLASSES, STRIDE = 4, 4
WAYS = ("stream", "tiles", "tiles of a module", "blend", "blend of a module")
HALF = 0.5 + 1e-2
"""Of a step of 1/250: what rounding changes, and a little for sums in another order."""


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """The largest probability, and how far the second lies below it: (2, rows, cols)."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=0))
    ordered = np.sort(np.concatenate([powers / powers.sum(axis=0), np.zeros((1, *scores.shape[1:]))]), axis=0)
    return np.stack([ordered[-1], ordered[-1] - ordered[-2]])


def assert_planes(planes: Planes, scores: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
    """As softmax says where there is data, NODATA elsewhere."""
    assert planes.dtype == np.uint8
    assert planes.shape == (2, *scores.shape[1:])
    known = np.ones(scores.shape[1:], np.bool_) if valid is None else valid
    assert np.abs(planes[:, known] - 250 * softmax(scores)[:, known]).max(initial=0) <= HALF
    assert (planes[:, ~known] == NODATA).all()


# --- scores to planes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [2, 40])
def test_planes_are_the_softmax(classes: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    scores = (3 * torch.from_numpy(np.random.default_rng(classes).normal(size=(1, classes, 30, 41)))).to(dtype)
    planes = confidence_planes(scores.contiguous(memory_format=layout)[0]).numpy()
    assert_planes(planes, scores[0].double().numpy())
    assert len(np.unique(planes[0])) > 50, "or it would not be a test"
    assert (planes[1] <= planes[0]).all()


def test_one_class_is_always_sure() -> None:
    assert (confidence_planes(torch.randn(1, 5, 6)) == SCALE).all()


@pytest.mark.parametrize("count", [2, 5])
def test_equal_scores_leave_no_margin(count: int) -> None:
    planes = confidence_planes(torch.full((count, 1, 1), 1e6))
    assert planes.flatten().tolist() == [SCALE // count, 0]


def test_large_scores_do_not_overflow() -> None:
    planes = confidence_planes(torch.tensor([[[-1e30, 88.0]], [[1e30, 89.0]]]))
    assert planes[:, 0, 0].tolist() == [SCALE, SCALE]
    assert_planes(planes[:, :, 1:].numpy(), np.array([[[88.0]], [[89.0]]]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_not_sure(broken: float) -> None:
    assert (confidence_planes(torch.full((3, 2, 2), broken)) == 0).all()


@settings(max_examples=20)
@given(st.integers(1, 20), st.integers(1, 70), st.integers(0, 9), st.integers(0, 9))
def test_a_pixel_has_the_same_bits_whatever_is_around_it(rows: int, cols: int, row: int, col: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 30, 80)).astype(np.float32)) * 3
    whole = confidence_planes(scores)[:, row : row + rows, col : col + cols]
    assert torch.equal(confidence_planes(scores[:, row : row + rows, col : col + cols]), whole)


@pytest.mark.parametrize("piece", [1, 1000])
def test_large_tiles_are_done_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(3, 50, 40)
    whole, needed = confidence_planes(scores), confidence_bytes(3, 2000)
    monkeypatch.setattr(confidence_module, "_PIECE", piece)
    assert torch.equal(confidence_planes(scores), whole)
    assert confidence_bytes(3, 2000) < needed


def test_what_is_decided_carries_the_planes() -> None:
    scores = torch.randn(1, 3, 20, 30)
    alone, both = Decided(choose(scores)), Decided(choose(scores, confidence=True))
    assert (alone.choice().shape, both.choice().shape, both.rows) == ((1, 20, 30), (3, 20, 30), 20)
    assert np.array_equal(both.channels(), alone.channels())
    assert_planes(both.choice()[1:], scores[0].numpy())


# --- passes --------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Stride 4; ends with an upsampling."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, classes, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(6 * self.body(x), scale_factor=4, mode="bilinear")


def _network(classes: int = CLASSES) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Small(classes).eval()


@cache
def _graph(classes: int = CLASSES) -> Graph:
    graph = capture(_network(classes), 3)
    assert graph.stride == STRIDE
    return graph


def _cut(way: str) -> Cut:
    lengths = {"chunk": 32, "lane": 64, "segment": 64, "stride": STRIDE}
    if way.startswith("blend"):
        return Cut(way="blend", tile=24, overlap=8, blend="hann", **lengths)
    return Cut(
        way="stream" if way == "stream" else "tiles", tile=16, overlap=_graph().reach.halo, blend=None, **lengths
    )


def _bands(way: str, work: Pass, part: Window, precision: Precision, classes: int) -> Iterator[Band]:
    cut, scaling = work.plan.cut, Scaling(SPEC, "cpu")
    if way == "stream":
        width = round_up(min(cut.lane + 2 * cut.overlap, work.plan.input.width), STRIDE)
        return stream(work, part, Strips(_graph(classes), scaling, precision, (cut.tile, width)))
    graph, side = None if "module" in way else _graph(classes), cut.tile + (2 * cut.overlap if cut.exact else 0)
    network = make_tiles(_network(classes), graph, scaling, precision, (STRIDE, side, not cut.exact))
    return tiles(work, part, network) if cut.blend is None else blended(work, part, network, cut.blend)


def _part(
    way: str,
    source: ArraySource,
    part: Window,
    *,
    confidence: bool = True,
    precision: Precision = "fp32",
    classes: int = CLASSES,
) -> Planes:
    """Class ids of a part and, with `confidence`, how sure they are: (1 or 3, rows, cols)."""
    work = make_pass(source, _cut(way), classes, confidence=confidence)
    found = []
    for band in _bands(way, work, part, precision, classes):
        assert (band.planes is not None) == confidence
        planes = np.empty((0, *band.classes.shape), np.uint8) if band.planes is None else band.planes
        found.append(np.concatenate([band.classes[None], planes]))
    return np.concatenate(found, axis=1)


def _map(way: str, source: ArraySource, **options: Any) -> Planes:
    """The whole raster, segment by segment of each lane."""
    cut, size = _cut(way), source.size
    rows = []
    for row in range(0, size.height, cut.segment):
        parts = [Window(row, col, cut.segment, cut.lane).clipped(size) for col in range(0, size.width, cut.lane)]
        rows.append(np.concatenate([_part(way, source, part, **options) for part in parts], axis=2))
    return np.concatenate(rows, axis=1)


def _oracle(way: str, source: ArraySource) -> NDArray[np.float64]:
    """Scores of the whole image; of blended tiles, their weighted sums over the whole image, upsampled."""
    cut, network = _cut(way), _network().double()
    if cut.exact:
        return whole_scores(network, source, STRIDE)
    rows, cols = (Axis(-(-length // 4), cut.tile // 4, cut.overlap // 4) for length in source.valid.shape)
    sums = np.zeros((CLASSES, rows.length, cols.length))
    for row in range(rows.count):
        for col in range(cols.count):
            (top, bottom), (left, right) = rows.span(row), cols.span(col)
            pixels = (slice(4 * top, 4 * bottom), slice(4 * left, 4 * right))
            grid = (4 * (bottom - top), 4 * (right - left))
            scaling = Scaling(SPEC, "cpu", torch.float64)
            with torch.inference_mode():
                image = scaling.image(source.values[(slice(None), *pixels)], source.valid[pixels], grid)
                scores = 6 * network.body(image)[0].numpy()
            assert cut.blend is not None
            weights = np.outer(axis_weights(rows, row, cut.blend), axis_weights(cols, col, cut.blend))
            sums[:, top:bottom, left:right] += weights * scores
    wide = functional.interpolate(torch.from_numpy(sums)[None], scale_factor=4, mode="bilinear")[0].numpy()
    out: NDArray[np.float64] = wide[:, : source.size.height, : source.size.width]
    return out


@pytest.mark.parametrize("way", WAYS)
def test_planes_are_those_of_the_whole_image(way: str) -> None:
    source = memory_raster(150, 110, seed=1, empty=[(40, 75)])
    planes = _map(way, source)[1:]
    assert_planes(planes, _oracle(way, source), source.valid)
    assert len(np.unique(planes[0])) > 50, "or it would not be a test"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_classes_are_the_same_with_and_without(way: str, precision: Precision) -> None:
    source = memory_raster(100, 70, seed=2)
    with_planes = _map(way, source, precision=precision)
    without = _map(way, source, precision=precision, confidence=False)
    assert (with_planes.shape[0], without.shape[0]) == (3, 1)
    assert with_planes[0].tobytes() == without[0].tobytes()


@pytest.mark.parametrize("way", ["stream", "blend"])
def test_bfloat16_is_nearly_as_sure(way: str) -> None:
    """Scores are rounded, not the probabilities: all steps of them occur."""
    source = memory_raster(60, 60, seed=3)
    planes = _map(way, source, precision="bf16")[1:]
    wanted = 250 * softmax(_oracle(way, source))
    assert np.abs(planes - wanted)[:, source.valid].mean() < 3
    assert len(np.unique(planes[1])) > 200


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8)
@given(first=st.integers(0, 1), rows=st.integers(1, 32))
def test_a_part_is_as_sure_whatever_else_is_asked_for(way: str, first: int, rows: int) -> None:
    """So that a run that was interrupted goes on with the same bytes."""
    source = memory_raster(110, 64, seed=4)
    part = Window(64 + 4 * first, 0, rows, 64)
    assert np.array_equal(_part(way, source, part), _map(way, source)[(slice(None), *part.slices())])


@pytest.mark.parametrize("way", ["stream", "tiles", "blend"])
def test_without_data_nothing_is_sure(way: str) -> None:
    source = memory_raster(60, 40, empty=[(0, 60)])
    assert (_map(way, source) == NODATA).all()


@pytest.mark.parametrize("way", ["stream", "tiles", "blend"])
def test_a_network_of_one_class(way: str) -> None:
    source = memory_raster(40, 40)
    classes, *planes = _map(way, source, classes=1)
    assert (classes == np.where(source.valid, 1, NODATA)).all()
    assert (np.stack(planes) == np.where(source.valid, SCALE, NODATA)).all()


@pytest.mark.parametrize("way", ["stream", "tiles", "blend"])
def test_the_memory_needed_counts_them(way: str) -> None:
    size, cut = Size(5000, 4000), _cut(way)
    values: dict[str, Any] = {
        "bands": 3,
        "classes": CLASSES,
        "stride": STRIDE,
        "halo": cut.overlap,
        "graph": _graph().bare(),
    }
    plain, sure = (
        Network(**values, obstacles=(), weights=1000, itemsize=4, confidence=confidence) for confidence in (False, True)
    )
    more = memory(sure, info_of(size), cut) - memory(plain, info_of(size), cut)
    cols = cut.tile if way == "tiles" else min(cut.lane + 2 * (cut.overlap if cut.exact else cut.tile), size.width)
    blocks = 3 * 2 * cut.chunk * cut.lane
    assert more == blocks + 2 * confidence_bytes(CLASSES, cut.tile * cols), "memory that is freed is kept: twice"


# --- runs ----------------------------------------------------------------------------------------------------

RUNS: dict[str, list[object]] = {
    "stream": [],
    "tiles": ["--tile", 64],
    "blend": ["--tile", 96, "--overlap", 32],
    **({"bf16": ["--precision", "bf16"]} if multiplies_bf16() else {}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stride 32, halo 128."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture
def raster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two lanes of four blocks, with a stretch without data."""
    small_blocks(monkeypatch)
    torch.set_num_threads(1)
    path = scene(tmp_path / "a.tif", 400, 200, nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.zeros((3, 90, 200), np.uint8), window=rasterio.windows.Window(0, 100, 200, 90))
    return path


def _planes(folder: Path) -> Planes:
    store = ConfidenceStore(folder / "a.confidence.zarr")
    return store.read(Window(0, 0, store.size.height, store.size.width))


def _kept(receipts: list[Receipt], patch: pytest.MonkeyPatch) -> None:
    """Keep every receipt; the block's planes must be in the store before it."""
    commit = Journal.commit

    def kept(journal: Journal, receipt: Receipt) -> None:
        store = ConfidenceStore(journal.folder / "a.confidence.zarr")
        planes = store.read(journal.plan().grid[receipt.block])
        assert receipt.confidence_sha256 == hashlib.sha256(planes.tobytes()).hexdigest()
        receipts.append(receipt)
        commit(journal, receipt)

    patch.setattr(Journal, "commit", kept)


@pytest.mark.parametrize("way", RUNS)
def test_a_run_stores_them(
    way: str, raster: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[Receipt] = []
    with monkeypatch.context() as patch:
        _kept(receipts, patch)
        segmented(raster, "-m", model, "--confidence", *RUNS[way])
    assert len(receipts) == 8
    planes, classes = _planes(tmp_path), class_map(tmp_path, "a")
    segmented(raster, "-m", model, "-o", tmp_path / "plain", *RUNS[way])
    assert classes.tobytes() == class_map(tmp_path / "plain", "a").tobytes()
    assert not (tmp_path / "plain" / "a.confidence.zarr").exists()
    assert ((planes == NODATA) == (classes == NODATA)).all()
    assert (classes[100:190] == NODATA).all()
    with rasterio.open(raster) as dataset:
        values, valid = dataset.read(), dataset.dataset_mask() > 0
    image = np.zeros((1, 3, 416, 224), np.float32)
    image[0, :, :400, :200] = np.where(valid, (values / 255 - 0.392) / 0.225, 0)
    with torch.inference_mode():
        scores = load_model(model)[1](torch.from_numpy(image))[0, :, :400, :200].numpy()
    if way in ("stream", "tiles"):
        assert_planes(planes, scores, valid)
    else:
        apart = np.abs(planes - 250 * softmax(scores))[:, valid].mean(axis=1)
        assert (apart < (3 if way == "bf16" else 60)).all()


@pytest.mark.parametrize("way", ["stream", "blend"])
def test_an_interrupted_run_gives_the_same_bytes(
    way: str, raster: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [raster, "-m", model, "--confidence", *RUNS[way]]
    segmented(*command, "-o", tmp_path / "undisturbed")

    def stopped(ticket: JobTicket, works: Sequence[Work], *rest: Any) -> None:
        execute(ticket, [works[0][:3]], *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "execute", stopped)
        assert fcn_batch("segment", *command).exit_code == 130
    receipts: list[Receipt] = []
    with monkeypatch.context() as patch:
        _kept(receipts, patch)
        segmented(*command)
    assert len(receipts) == 5, "three blocks were done"
    assert _planes(tmp_path).tobytes() == _planes(tmp_path / "undisturbed").tobytes()
    assert class_map(tmp_path, "a").tobytes() == class_map(tmp_path / "undisturbed", "a").tobytes()


def test_lower_strips_are_as_sure(raster: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out, the pass is begun again in strips of half the height."""
    segmented(raster, "-m", model, "--confidence", "-o", tmp_path / "undisturbed")
    push, failed = RowStream.push, []

    def full(stream: RowStream, strip: torch.Tensor, *, last: bool = False) -> torch.Tensor | None:
        if strip.shape[2] > 32:
            failed.append(strip.shape)
            raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 1 bytes")
        return push(stream, strip, last=last)

    monkeypatch.setattr(RowStream, "push", full)
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._STRIP_PIXELS", {"cpu": 2**14})
    segmented(raster, "-m", model, "--confidence")
    assert failed
    assert np.abs(_planes(tmp_path).astype(int) - _planes(tmp_path / "undisturbed")).max() <= 1


@pytest.mark.parametrize("wanted", [True, False])
def test_plan_and_ticket_must_agree(wanted: bool, raster: Path, model: Path, tmp_path: Path) -> None:
    prepared = prepare(raster, Options(str(model), confidence=wanted))
    journal = Journal(tmp_path / "a.partial")
    journal.begin(prepared.plan)
    create_store(journal.folder / "a.classes.zarr", prepared.plan, prepared.model.card.legend)
    name = None if wanted else "a.confidence.zarr"
    ticket = JobTicket(str(journal.folder), "a.classes.zarr", prepared.plan.fingerprint, "cpu", name)
    with pytest.raises(ValueError):
        open_job(ticket)
