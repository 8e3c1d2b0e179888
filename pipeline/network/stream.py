"""Run a network over a raster from top to bottom, a strip of rows at a time, each layer keeping what it still needs.

Nothing is computed twice, and nothing differs from one pass over the whole image: a layer pads only at the true
top and bottom, and between strips keeps the last rows that its next output looks at::

    strip     | 64 rows in |
    conv 3x3  | keeps 2 rows of its input, gives 64
    pool 2x2  | keeps 1 row if its input's rows are odd, gives 32
    …
    scores    | the rows that are decided by now: `lag` rows behind the strip

Memory is that of one strip, whatever the raster's height.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.layers import Layer


class Program:
    """A graph whose weights lie ready on one device, in one precision, for strips of one shape."""

    def __init__(self, graph: Graph, device: torch.device, dtype: torch.dtype, strip: tuple[int, int]) -> None:
        """`strip` is rows and columns; other shapes run too, a little slower."""
        self.dtype = dtype
        scores = torch.promote_types(dtype, torch.float32)
        self.dtypes = tuple(scores if scoring else dtype for scoring in graph.scoring)
        nodes = (
            replace(node, layer=node.layer.prepared(device, kind, _input_shape(graph, index, strip)))
            for index, (node, kind) in enumerate(zip(graph.nodes, self.dtypes, strict=True))
        )
        self.graph = Graph(graph.bands, tuple(nodes))  # without the weights as they were


def _input_shape(graph: Graph, index: int, strip: tuple[int, int]) -> Sequence[int]:
    """Shape of what node `index` gets when everything is in flow."""
    node = graph.nodes[index]
    before = graph.nodes[node.inputs[0] - 1] if node.inputs[0] else None
    rows = max(1, int(strip[0] / graph.scales[index + 1]))
    low, high = node.layer.needs(0, rows)
    columns = max(1, int(strip[1] * (before.columns if before else 1)))
    return 1, before.channels if before else graph.bands, high - low, columns


class _Rows:
    """The rows of one value that are still needed."""

    def __init__(self) -> None:
        self.first = 0
        """Number of the first row that is here."""
        self.done = 0
        """Rows that there have been, from the top."""
        self.rows: torch.Tensor | None = None

    def append(self, rows: torch.Tensor) -> None:
        self.done += rows.shape[2]
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows], dim=2)

    def take(self, start: int, stop: int) -> torch.Tensor:
        assert self.rows is not None, "a layer asked for rows before there were any"
        assert start >= self.first, "a layer asked for a row that was let go"
        return self.rows[:, :, start - self.first : stop - self.first]

    def let_go(self, first: int) -> None:
        """Forget the rows before `first`."""
        if self.rows is None or first <= self.first:
            return
        # a copy, so that the memory of the others is free
        self.rows = None if first >= self.done else self.rows[:, :, first - self.first :].clone()
        self.first = min(first, self.done)


class RowStream:
    """One pass of a program over one image, from its top on."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values = [_Rows() for _ in range(len(program.graph.nodes) + 1)]

    @property
    def scored(self) -> int:
        """Rows of scores given so far."""
        return self._values[-1].done

    @torch.inference_mode()
    def push(self, strip: torch.Tensor, *, last: bool = False) -> torch.Tensor | None:
        """The next rows of the image, (1, bands, rows, cols), to the next rows of scores, if some are decided.

        `last` when the image ends here; its rows and columns are then multiples of the network's stride.
        """
        graph, values = self._program.graph, self._values
        values[0].append(strip.to(self._program.dtype))
        counts = graph.total(values[0].done) if last else graph.ready(values[0].done)
        scores: torch.Tensor | None = None
        for index, node in enumerate(graph.nodes):
            out = self._next_rows(index, counts)
            for value in dict.fromkeys(node.inputs):
                if graph.consumers[value][-1] == index:
                    values[value].let_go(self._first_needed(value, index, counts[index + 1]))
            if out is not None and index == len(graph.nodes) - 1:
                scores = out
                values[-1].done += out.shape[2]
            elif out is not None:
                values[index + 1].append(out)
            del out  # the next layer needs the room
        return scores

    def _next_rows(self, index: int, counts: tuple[int, ...]) -> torch.Tensor | None:
        """What node `index` can give now, up to row ``counts[index + 1]``."""
        node = self._program.graph.nodes[index]
        start, stop = self._values[index + 1].done, counts[index + 1]
        if stop <= start:
            return None
        dtype = self._program.dtypes[index]
        inputs = [_padded(node.layer, self._values[value], start, stop).to(dtype) for value in node.inputs]
        return node.layer.compute(inputs, start, stop)

    def _first_needed(self, value: int, index: int, done: int) -> int:
        """The first row of `value` that its consumers still look at; the last one, `index`, has given `done` rows."""
        graph = self._program.graph
        given = ((i, done if i == index else self._values[i + 1].done) for i in graph.consumers[value])
        return min(graph.nodes[i].layer.needs(rows, rows + 1)[0] for i, rows in given)


def _padded(layer: Layer, value: _Rows, start: int, stop: int) -> torch.Tensor:
    """The rows that output rows `start` to `stop` look at, padded where they leave the map."""
    low, high = layer.needs(start, stop)
    inside = value.take(max(low, 0), min(high, value.done))
    return layer.pad(inside, max(-low, 0), max(high - value.done, 0))
