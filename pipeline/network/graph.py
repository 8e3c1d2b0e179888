"""A network as a list of layers: its grid, its halo and its memory follow from them, and it can be streamed.

`capture.py` makes one from a torch module; `stream.py` runs it.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.layers import Interpolate, Layer, Sliding, Transposed


@dataclass(frozen=True, slots=True)
class Node:
    """One layer and where it stands."""

    layer: Layer
    inputs: tuple[int, ...]
    """Numbers of the values it takes: 0 is the image, k the output of node k - 1."""
    channels: int
    columns: Fraction
    """Columns of its output for one column of the image."""
    name: str


@dataclass(frozen=True)
class Graph:
    """A network made of layers that can all be run a few rows at a time."""

    bands: int
    nodes: tuple[Node, ...]

    def bare(self) -> "Graph":
        """The same without weights: enough to count rows and bytes."""
        return Graph(self.bands, tuple(replace(node, layer=node.layer.bare()) for node in self.nodes))

    @property
    def classes(self) -> int:
        """Channels of the scores: the last node's."""
        return self.nodes[-1].channels

    @cached_property
    def scales(self) -> tuple[Fraction, ...]:
        """Image rows for one row of every value, the image first."""
        scales = [Fraction(1)]
        for node in self.nodes:
            scale = scales[node.inputs[0]]
            if isinstance(node.layer, Sliding):
                scale *= node.layer.stride
            elif isinstance(node.layer, Transposed):
                scale /= node.layer.stride
            elif isinstance(node.layer, Interpolate):
                scale /= node.layer.factor
            scales.append(scale)
        return tuple(scales)

    @cached_property
    def stride(self) -> int:
        """Rows after which the network repeats itself; an image must have a multiple of it."""
        rows = math.lcm(*(scale.numerator for scale in self.scales))
        columns = math.lcm(*((1 / node.columns).numerator for node in self.nodes))
        return math.lcm(rows, columns)

    @cached_property
    def reach(self) -> Reach:
        """What the scores look at along the rows."""
        reaches = [Reach.of_input(self.stride)]
        for node in self.nodes:
            reaches.append(node.layer.reach([reaches[i] for i in node.inputs]))
        return reaches[-1]

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the nodes that take each value, the image first."""
        taken: list[list[int]] = [[] for _ in range(len(self.nodes) + 1)]
        for index, node in enumerate(self.nodes):
            for value in dict.fromkeys(node.inputs):
                taken[value].append(index)
        return tuple(map(tuple, taken))

    @cached_property
    def scoring(self) -> tuple[bool, ...]:
        """Which nodes compute nothing but scores: as many channels as there are classes, here and from here on.

        These run in float32 whatever the precision of the others: rounding scores to 8 bits makes ties.
        """
        flags = [False] * len(self.nodes)
        for index in reversed(range(len(self.nodes))):
            later = self.consumers[index + 1]
            flags[index] = self.nodes[index].channels == self.classes and all(flags[i] for i in later)
        return tuple(flags)

    def ready(self, rows: int) -> tuple[int, ...]:
        """Rows of every value that the first `rows` image rows decide when more are to come: a stride or more."""
        counts = [rows]
        for node, total in zip(self.nodes, self.total(rows + self.stride)[1:], strict=True):
            decided = min(node.layer.ready(counts[i]) for i in node.inputs)
            counts.append(max(0, min(decided, total)))  # the rows beyond may be those that are cut off at the end
        return tuple(counts)

    def total(self, rows: int) -> tuple[int, ...]:
        """Rows of every value of an image of `rows` rows."""
        counts = [rows]
        for node in self.nodes:
            counts.append(node.layer.total(counts[node.inputs[0]]))
        return tuple(counts)

    def warm_up(self, strip: int) -> int:
        """Image rows, in whole strips, after which every layer has given rows and keeps giving a strip's worth."""
        rows = strip
        while min(self.ready(rows)) < 1:
            rows += strip
        return rows

    def lag(self, strip: int) -> int:
        """Image rows that must have gone in, in strips, beyond the last row of scores that has come out."""
        rows = self.warm_up(strip)
        return rows - self.ready(rows)[-1]

    def bytes_of_strip(self, rows: int, columns: int, itemsize: int) -> int:
        """Bytes alive at once, about, while strips of `rows` x `columns` pixels go through.

        That is the widest place of the network, where beside a node's input and output there may be a copy of the
        input (to join the rows kept from before), and the rows that all layers keep between strips.
        """
        row = [self.bands * columns * itemsize]  # bytes of one row of each value
        for index, node in enumerate(self.nodes):
            size = 4 if self.scoring[index] else itemsize
            row.append(node.channels * math.ceil(columns * node.columns) * size)
        values = [math.ceil(rows / scale) * size for scale, size in zip(self.scales, row, strict=True)]
        widest = 0
        for index, node in enumerate(self.nodes):
            held = sum(values[v] for v in range(index + 1) if self._held(v, index))
            widest = max(widest, held + max(values[v] for v in node.inputs) + values[index + 1])
        kept = sum(count * size for count, size in zip(self._rows_kept(rows), row, strict=True))
        return widest + kept + 2 * 4 * rows * columns  # the winning class, as torch counts it: int64

    def _rows_kept(self, strip: int) -> list[int]:
        """Rows of every value that are kept between strips when all layers are in flow."""
        done = self.ready(self.warm_up(strip))
        firsts = (
            min((self.nodes[i].layer.needs(done[i + 1], done[i + 1] + 1)[0] for i in taken), default=done[value])
            for value, taken in enumerate(self.consumers)
        )
        return [max(0, rows - first) for rows, first in zip(done, firsts, strict=True)]

    def _held(self, value: int, node: int) -> bool:
        return bool(self.consumers[value]) and self.consumers[value][-1] >= node
