"""From a torch module to a `Graph`: what it computes is recorded by torch.export (a torch.fx graph of ATen calls).

Recording sees through any Python in `forward`; what remains are a few dozen kinds of calls. `readers.py` knows those
that can be run a few rows at a time; everything else is an obstacle, told by its place in the module.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import fx, nn
from torch.export import ExportedProgram, export
from torch.export.graph_signature import InputKind

from fcn_batch.pipeline.core.geometry import round_up
from fcn_batch.pipeline.core.model_card import ModelCard
from fcn_batch.pipeline.network.graph import Graph, Node
from fcn_batch.pipeline.network.readers import (
    READERS,
    Obstacle,
    Recorder,
    is_local,
    looks_everywhere,
    name_of,
    place,
)

_SIDE = 1920  # 2^7 * 3 * 5: on the grid of any usual network; nothing is computed on it


class NotStreamableError(Exception):
    """The network holds layers that need the whole image, or that are not known; `obstacles` names each."""

    def __init__(self, obstacles: list[str], *, local: bool = False) -> None:
        super().__init__("; ".join(obstacles))
        self.obstacles = obstacles
        self.local = local
        """True when it was recorded whole, and all that is not known is sure to look near by."""


def capture(network: nn.Module, bands: int) -> Graph:
    """The layers of `network`, which takes (1, bands, rows, cols) and gives scores of the same rows and columns.

    NotStreamableError names what needs the whole image at once or is not known.
    """
    like = next(network.parameters(), torch.empty(0))
    example = torch.empty(1, bands, _SIDE, _SIDE, dtype=like.dtype, device=like.device)
    try:
        with _quiet():
            exported = export(network.eval(), (example,), strict=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise NotStreamableError([f"torch.export cannot record it ({type(error).__name__}: {first})"]) from error
    return _graph(exported, bands)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch warns, logs and prints about its own recording."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _graph(exported: ExportedProgram, bands: int) -> Graph:
    """All recorded calls as layers."""
    calls, recorder = exported.graph, Recorder(bands)
    calls.eliminate_dead_code()
    _read_placeholders(exported, recorder)
    if kept := exported.graph_signature.buffers_to_mutate:
        raise NotStreamableError([f"it keeps numbers from one image to the next ({', '.join(kept.values())})"])
    made = [call for call in calls.nodes if call.op == "call_function"]
    found = [(call, _read(recorder, call)) for call in made]
    if any(obstacle for _, obstacle in found):
        everywhere = [f"{place(call)}: {name_of(call)} ({why})" for call in made if (why := looks_everywhere(call))]
        local = all(is_local(recorder, call) for call in made if call not in recorder.values)
        others = [obstacle for _, obstacle in found if obstacle]
        raise NotStreamableError(list(dict.fromkeys([*everywhere, *others])), local=local and not everywhere)
    output = next(iter(calls.output_node().args[0]))
    if not recorder.values.get(output):
        raise NotStreamableError(["its output is not computed from the image"])
    graph = _pruned(Graph(bands, tuple(recorder.nodes)), recorder.values[output])
    side, (rows, columns) = round_up(_SIDE, graph.stride), output.meta["val"].shape[2:]
    if graph.total(side)[-1] != side or rows != columns:
        raise NotStreamableError([f"its scores of {_SIDE} x {_SIDE} pixels are {rows} x {columns}"])
    return graph


def _read_placeholders(exported: ExportedProgram, recorder: Recorder) -> None:
    """The image is value 0, everything else that goes in is a constant."""
    state, constants = exported.state_dict, exported.constants
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            recorder.values[node] = 0
        else:
            name = spec.target or ""
            recorder.constants[node] = (state[name] if name in state else constants[name]).detach()


def _read(recorder: Recorder, call: fx.Node) -> str | None:
    """Read one call; what stands in the way of streaming it, if something does."""
    if any(given not in recorder.values and given not in recorder.constants for given in call.all_input_nodes):
        return None  # it follows an obstacle
    name = name_of(call)
    reader = READERS.get(name)
    try:
        if reader is None:
            raise Obstacle(looks_everywhere(call) or "not known")
        if str(call.target).split(".")[1].endswith("_") and _is_alias(call.args[0]):
            raise Obstacle("changes in place what has another name too")
        reader(recorder, call)
    except Obstacle as obstacle:
        return f"{place(call)}: {name} ({obstacle})"
    return None


def _is_alias(argument: object) -> bool:
    """True for another name of the same numbers."""
    return isinstance(argument, fx.Node) and str(argument.target).split(".")[1:2] in (["detach"], ["contiguous"])


def _pruned(graph: Graph, output: int) -> Graph:
    """The graph up to value `output`, without what that does not need."""
    needed = {output}
    for index in reversed(range(output)):
        if index + 1 in needed:
            needed.update(graph.nodes[index].inputs)
    kept = [index for index in range(output) if index + 1 in needed]
    new = {0: 0, **{old + 1: k for k, old in enumerate(kept, start=1)}}
    nodes = (graph.nodes[index] for index in kept)
    return Graph(
        graph.bands, tuple(Node(n.layer, tuple(new[v] for v in n.inputs), n.channels, n.columns, n.name) for n in nodes)
    )


def graph_for(card: ModelCard, network: nn.Module) -> tuple[Graph | None, list[str]]:
    """Return the layers of a model's network; or None, and the reason, where its recording is not what it computes."""
    if card.exactness != "exact":
        return None, [card.inexact]
    return graph_of(network, len(card.input.bands))


def graph_of(network: nn.Module, bands: int) -> tuple[Graph | None, list[str]]:
    """The network's layers; or None, and what stands in the way."""
    try:
        return capture(network, bands), []
    except NotStreamableError as error:
        return None, error.obstacles
