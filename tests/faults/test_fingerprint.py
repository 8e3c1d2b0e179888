"""G4: whatever decides the bytes of a map is in the plan's fingerprint, and another machine is not mixed in unasked."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from fcn_batch.pipeline.core import plan as plan_module
from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.georeference import GroundControl
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.plan import Cut, FileIdentity, InputIdentity, Kernel, ModelIdentity, Plan
from fcn_batch.pipeline.core.source import SourceFile
from fcn_batch.pipeline.core.stretch import Stretch
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.core.validity import NodataOption
from fcn_batch.workflows import segment as segment_module
from fcn_batch.workflows.blocks.job import close_job
from fcn_batch.workflows.blocks.kernel import kernel_here
from fcn_batch.workflows.processes.execute import execute
from tests.models import save_tiny_model
from tests.runs import class_map, fcn_batch, scene, segmented, small_blocks

Place = tuple[str | int, ...]
PLAN = Plan(
    input=InputIdentity(
        path="/data/a.tif",
        files=(FileIdentity(name="a.tif", bytes=1000, modified_ns=12345, sha256="ab", tag="ef", listing="cd"),),
        height=300,
        width=200,
        bands=3,
        dtype="uint8",
        crs_wkt="LOCAL_CS[]",
        transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
        ground=GroundControl(crs_wkt="LOCAL_CS[]", points=((0.0, 0.0, 1.0, 2.0, 3.0),)),
        microns=0.5,
        resampling="average",
        sources=(SourceFile(path="/data/a.tif", level=1, nodata=NodataOption("0,0,0", "all")),),
        nodata=(1.0, 2.0, 3.0),
        nodata_rule="all",
    ),
    model=ModelIdentity(path="/models/m.safetensors", name="m", version="1", sha256="cd"),
    bands=(1, 2, 3),
    full_scale=255.0,
    stretch=Stretch(by="1,9", ranges=((1.0, 9.0),) * 3),
    area=Area(polygons=((((1.0, 2.0), (9.0, 2.0), (9.0, 8.0), (1.0, 2.0)),),)),
    tissue=Area(polygons=((((1.0, 2.0), (9.0, 2.0), (9.0, 7.0), (1.0, 2.0)),),)),
    cut=Cut(way="blend", chunk=64, lane=128, segment=192, tile=64, overlap=32, stride=32, blend="hann"),
    exactness="windows",
    kernel=Kernel(
        device="cpu",
        torch="2",
        gdal="3",
        fcn_batch="0",
        threads=2,
        instructions="AVX2",
        torchvision="0",
        rasterio="1",
        numpy="2",
        cudnn=1,
        switches=("A=1",),
    ),
    inner=32,
)
"""Has a value wherever there may be one."""
PATHS: set[Place] = {("input", "path"), ("input", "sources", 0, "path"), ("model", "path")}


def is_node(value: object) -> bool:
    return isinstance(value, BaseModel) or is_dataclass(value)


def annotations(node: Any) -> dict[str, Any]:
    """Name and type of the fields of a model or dataclass."""
    if isinstance(node, BaseModel):
        return {name: info.annotation for name, info in type(node).model_fields.items()}
    return get_type_hints(type(node))


def leaves(node: Any) -> Iterator[Place]:
    """Places of all values in a model: of those in its models, dataclasses and lists of models too."""
    for name in annotations(node):
        value = getattr(node, name)
        if is_node(value):
            yield from ((name, *rest) for rest in leaves(value))
        elif isinstance(value, tuple) and value and is_node(value[0]):
            yield from ((name, index, *rest) for index, one in enumerate(value) for rest in leaves(one))
        else:
            yield (name,)


def field(place: Place) -> tuple[Any, Any]:
    """Type and value of a leaf of `PLAN`."""
    node: Any = PLAN
    annotation: Any = None
    for step in place:
        if isinstance(step, str):
            annotation = annotations(node)[step]
            node = getattr(node, step)
        else:
            node = node[step]
    return annotation, node


def others(annotation: Any, value: Any) -> list[Any]:
    """Values of the same type: hardly another one, and none at all where that is allowed."""
    choices = [*get_args(annotation), *(inner for one in get_args(annotation) for inner in get_args(one))]
    if get_origin(annotation) is Literal or any(get_origin(one) is Literal for one in choices):
        found: list[Any] = [one for one in choices if isinstance(one, str) and one != value][:1]
    elif isinstance(value, bool):
        found = [not value]
    elif isinstance(value, float):
        found = [value * (1 + 2**-52)]
    elif isinstance(value, int):
        found = [value + 1]
    elif isinstance(value, str):
        found = [value + " "]
    else:
        assert isinstance(value, tuple)
        found = [(*value[1:], *others(None, value[0]))]
    return [*found, None] if NoneType in choices else found


def changed(place: Place, value: Any, of: Plan = PLAN) -> Plan:
    """A plan with another value at a place; its checks are left out: each field is to count alone."""

    def put(node: Any, rest: Place) -> Any:
        if not rest:
            return value
        step = rest[0]
        if isinstance(step, int):
            return (*node[:step], put(node[step], rest[1:]), *node[step + 1 :])
        update = {step: put(getattr(node, step), rest[1:])}
        return node.model_copy(update=update) if isinstance(node, BaseModel) else replace(node, **update)

    plan: Plan = put(of, place)
    return plan


PLACES = sorted(set(leaves(PLAN)) - PATHS - {("format",)}, key=str)
"""Of what counts, but for the format, which has one value."""


def faults_of_the_fingerprint() -> list[str]:
    """Fields whose change is not noticed, or not called by name."""
    faults = []
    for place in PLACES:
        name = ".".join(map(str, place))
        for value in others(*field(place)):
            plan = changed(place, value)
            named = {difference.split(":")[0] for difference in PLAN.differences(plan)}
            named = {".".join(part for part in one.split(".")[: len(place)]) for one in named}
            if plan.fingerprint == PLAN.fingerprint or named != {name}:
                faults.append(f"{name} {value!r}: {named}")
    return faults


def test_each_field_of_the_plan_is_in_its_fingerprint_and_named_when_it_differs() -> None:
    assert len(set(leaves(PLAN))) >= 35, "models in models are walked"
    assert faults_of_the_fingerprint() == []


@pytest.mark.parametrize("place", PLACES, ids=lambda p: ".".join(map(str, p)))
def test_a_field_dropped_from_the_fingerprint_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: Any = True
    for step in reversed(place):
        dropped = {"__all__" if isinstance(step, int) else step: dropped}
    exclude: dict[str, Any] = {"input": {"path": True}, "model": {"path": True}}
    for name, what in dropped.items():
        exclude[name] = {**exclude[name], **what} if name in exclude else what
    monkeypatch.setattr(plan_module, "_NOT_IDENTITY", exclude)
    faults = faults_of_the_fingerprint()
    assert faults, "the check above does not see that a field is gone"
    assert {fault.split(" ")[0] for fault in faults} == {".".join(map(str, place))}


# --- another machine -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here, as far as the program can tell."""


@pytest.fixture
def begun_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A raster and a model, and beside the raster four of nine blocks that "another machine" has done."""
    small_blocks(monkeypatch)
    model, path = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1), scene(tmp_path / "a.tif")

    def some(ticket: Any, works: Sequence[Work], *rest: Any) -> None:
        blocks = [block for work in works for block in work][:4]
        execute(ticket, [(block,) for block in blocks], *rest)
        raise Killed

    def kernel_there(*here: Any) -> Kernel:
        return kernel_here(*here).model_copy(update={"instructions": "ABACUS", "torch": "1.0"})

    with monkeypatch.context() as patch:
        patch.setattr(segment_module, "execute", some)
        patch.setattr("fcn_batch.workflows.plan.kernel_here", kernel_there)
        patch.setattr("fcn_batch.workflows.blocks.job.kernel_here", kernel_there)
        with pytest.raises(Killed):
            fcn_batch("segment", path, "-m", model)
    close_job()
    assert len(list(Journal(tmp_path / "a.partial").receipts())) == 4
    return path, model


def test_what_another_machine_began_is_refused_and_with_allow_mixed_it_goes_on(
    begun_elsewhere: tuple[Path, Path],
) -> None:
    path, model = begun_elsewhere
    told = ("kernel.instructions: ABACUS", "kernel.torch: 1.0")
    result = fcn_batch("segment", path, "-m", model)
    assert result.exit_code == MismatchError.exit_code
    assert all(text in result.stderr for text in (*(f"{one}, now " for one in told), "--allow-mixed"))
    assert not (path.parent / "a.run.json").exists()
    result = segmented(path, "-m", model, "--allow-mixed")
    assert "resuming the interrupted run" in result.stderr
    report = json.loads((path.parent / "a.run.json").read_text())
    assert report["timing"]["blocks_done_by_earlier_runs"] == 4
    notes = [note for note in report["notes"] if "kernel." in note]
    for note, name in zip(notes, told, strict=True):
        assert note.startswith("5 blocks were computed by another kind of machine")
        assert name in note
    assert report["plan"]["kernel"]["instructions"] == "ABACUS"
    assert fcn_batch("validate", path.parent / "a.run.json").exit_code == 0
    segmented(path, "-m", model, "-o", path.parent / "alone")
    assert (class_map(path.parent, "a") == class_map(path.parent / "alone", "a")).all()
    assert "complete already" in segmented(path, "-m", model, "--allow-mixed").stderr


def test_a_worker_on_another_machine_is_refused_too(
    begun_elsewhere: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = begun_elsewhere
    monkeypatch.setattr(
        "fcn_batch.workflows.plan.kernel_here", lambda *_: Journal(path.parent / "a.partial").plan().kernel
    )
    result = fcn_batch("segment", path, "-m", model)  # the driver is of the same kind, where it works is not
    assert result.exit_code == MismatchError.exit_code
    assert "this machine would round otherwise than the run does (kernel.torch: 1.0, now " in result.stderr
    assert "--allow-mixed" in result.stderr
    assert segmented(path, "-m", model, "--allow-mixed")


def test_switches_of_the_libraries_are_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    path = scene(tmp_path / "a.tif", 50, 60)

    def kernel() -> Any:
        return json.loads(fcn_batch("plan", path, "-m", model, "--json").stdout)["kernel"]

    before = kernel()
    assert all(before[name] for name in ("torch", "torchvision", "numpy", "rasterio", "gdal", "fcn_batch"))
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert kernel() == {**before, "switches": ["MKL_CBWR=COMPATIBLE", "ONEDNN_MAX_CPU_ISA=SSE41"]}
