"""What has been read of a recorded network so far: its layers, its values, its constants.

`readers.py` reads one call at a time into it, `capture.py` goes through all of them.
"""

from fractions import Fraction
from typing import Any

import torch
from torch import fx

from fcn_batch.pipeline.network.functions import Convolution
from fcn_batch.pipeline.network.graph import Node
from fcn_batch.pipeline.network.layers import Layer, Sliding


class Obstacle(Exception):  # noqa: N818 - not an error of the program
    """Why one call cannot be streamed."""


class Recorder:
    """Takes the calls one by one."""

    def __init__(self, bands: int) -> None:
        self.bands = bands
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, int] = {}
        """Numbers of the values so far: 0 is the image."""
        self.constants: dict[fx.Node, torch.Tensor] = {}

    def value(self, argument: Any) -> int:
        """The number of an argument that is a map of features; Obstacle when it is none."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise Obstacle("not of a map of features")
        return self.values[argument]

    def constant(self, argument: Any) -> torch.Tensor:
        """An argument that holds weights; Obstacle when it is computed from the image."""
        if not isinstance(argument, fx.Node) or argument not in self.constants:
            raise Obstacle("its weights are computed")
        return self.constants[argument]

    def columns(self, value: int) -> Fraction:
        """Columns of a value for one of the image."""
        return self.nodes[value - 1].columns if value else Fraction(1)

    def channels(self, value: int) -> int:
        """Channels of a value."""
        return self.nodes[value - 1].channels if value else self.bands

    def add(self, call: fx.Node, layer: Layer, inputs: tuple[int, ...], **changes: Any) -> None:
        """One more node, with as many channels and columns as its first input unless `changes` says otherwise."""
        channels = changes.get("channels", self.channels(inputs[0]))
        columns = changes.get("columns", self.columns(inputs[0]))
        self.nodes.append(Node(layer, inputs, channels, columns, place(call)))
        self.values[call] = len(self.nodes)

    def only_use(self, argument: fx.Node) -> bool:
        """True when a call may be merged into the one that made its argument: nothing else takes that value."""
        same = {node for node, value in self.values.items() if value == self.values[argument]}
        uses = {user for node in same for user in node.users} - same
        return len(uses) == 1 and self.values[argument] == len(self.nodes)

    def replace_last(self, call: fx.Node, convolution: Convolution) -> None:
        """Merge `call` into the last node: its convolution becomes another one."""
        node = self.nodes[-1]
        assert isinstance(node.layer, Sliding)
        s = node.layer
        layer = Sliding(s.kernel, s.stride, s.padding, s.ceil, s.fill, convolution)
        self.nodes[-1] = Node(layer, node.inputs, node.channels, node.columns, node.name)
        self.values[call] = len(self.nodes)

    def last_convolution(self, argument: fx.Node) -> Convolution | None:
        """The convolution that made `argument`, when what follows may be merged into it."""
        layer = self.nodes[-1].layer if self.nodes and self.only_use(argument) else None
        function = layer.function if isinstance(layer, Sliding) else None
        return function if isinstance(function, Convolution) and not function.relu else None


def place(call: fx.Node) -> str:
    """The module that made the call, by its name in the network; else the call's own."""
    stack = call.meta.get("nn_module_stack") or {}
    path = [str(entry[0]) for entry in stack.values()]
    return (path[-1].removeprefix("L['self'].") if path else "") or call.name
