"""Run a network on pixels: numpy in, numpy out. No rasters, no stores.

Pixels go to the device as they are in the file; scaling, the network and the choice of the best class are done
there, and one byte a pixel comes back; three if it is asked how sure the network is.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fcn_batch.pipeline.core.geometry import round_up
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Precision
from fcn_batch.pipeline.network.confidence import confidence_planes
from fcn_batch.pipeline.network.device import DTYPES
from fcn_batch.pipeline.network.graph import Graph, Node
from fcn_batch.pipeline.network.layers import Interpolate, Plain, Pointwise
from fcn_batch.pipeline.network.stream import Program, RowStream

Choice = NDArray[np.uint8]
"""(1 or 3, rows, cols): number of the best channel at each pixel and, if wanted, the two confidence planes."""


class Scaling:
    """From a raster's numbers to a network's: (value / full_scale - mean) / std for each band, 0 without data.

    NaN and infinity may stand where pixels are not valid, and nowhere else. Training and runs use the same.
    """

    def __init__(self, spec: InputSpec, device: str, dtype: torch.dtype = torch.float32) -> None:
        gain = [1 / (spec.full_scale * band.std) for band in spec.bands]
        offset = [-band.mean / band.std for band in spec.bands]
        self.device = torch.device(device)
        self.gain = torch.tensor(gain, dtype=dtype, device=device)[None, :, None, None]
        self.offset = torch.tensor(offset, dtype=dtype, device=device)[None, :, None, None]

    def image(self, values: NDArray[Any], valid: NDArray[np.bool_], grid: tuple[int, int]) -> torch.Tensor:
        """(bands, rows, cols) of the raster's own type to (1, bands, rows, cols), padded with 0 to shape `grid`."""
        rows, cols = valid.shape
        x, mask = self._sent(values)[None], self._sent(valid)
        x = torch.where(mask, x.to(self.gain.dtype) * self.gain + self.offset, 0)
        x = functional.pad(x, (0, grid[1] - cols, 0, grid[0] - rows))
        return x.contiguous(memory_format=torch.channels_last)

    def _sent(self, array: NDArray[Any]) -> torch.Tensor:
        """`array` on the device; to a GPU from pinned memory, so that nobody waits for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


class Strips:
    """A network that is streamed: as many passes as are wanted, with one set of weights."""

    def __init__(self, graph: Graph, scaling: Scaling, precision: Precision, strip: tuple[int, int]) -> None:
        self.rows = strip[0]
        self.warm_up = graph.warm_up(self.rows)
        """Rows until every layer is in flow."""
        self.scaling = scaling
        self.program = Program(graph, scaling.device, DTYPES[precision], strip)

    def lower(self, rows: int) -> "Strips":
        """The same with strips of so many rows: for less memory."""
        if self.scaling.device.type == "cuda":
            torch.cuda.empty_cache()
        strips = copy(self)
        strips.rows, strips.warm_up = rows, self.program.graph.warm_up(rows)
        return strips

    def begin(self, *, confidence: bool = False, probabilities: bool = False) -> "StripPass":
        """A pass from the top of an image; with `confidence` it also says how sure the network is.

        `probabilities`: its scores are these already.
        """
        return StripPass(self, confidence=confidence, probabilities=probabilities)


class StripPass:
    """One pass over a lane, strip by strip, to class numbers."""

    def __init__(self, strips: Strips, *, confidence: bool, probabilities: bool) -> None:
        self._stream = RowStream(strips.program)
        self._scaling = strips.scaling
        self._confidence, self._probabilities = confidence, probabilities

    @torch.inference_mode()
    def push(
        self, values: NDArray[Any], valid: NDArray[np.bool_], grid: tuple[int, int], *, last: bool
    ) -> "Decided | None":
        """The next strip, padded to `grid` rows and columns, to the best channel of the rows that are decided now.

        Of equal scores the first channel wins, on every device.
        """
        scores = self._stream.push(self._scaling.image(values, valid, grid), last=last)
        if scores is None:
            return None
        return Decided(choose(scores, confidence=self._confidence, probabilities=self._probabilities))


class Decided:
    """Rows of best channels on their way from the device: a GPU goes on with the next strip meanwhile."""

    def __init__(self, chosen: torch.Tensor) -> None:
        """`chosen` as `choose` gives it."""
        self.rows = chosen.shape[1]
        self._arrived: torch.cuda.Event | None = None
        self._host = chosen
        if chosen.device.type == "cuda":
            self._host = torch.empty(chosen.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(chosen, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def choice(self) -> Choice:
        """(1 or 3, rows, cols); waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        choice: Choice = self._host.cpu().numpy()
        return choice

    def channels(self) -> NDArray[np.uint8]:
        """The best channels alone: (rows, cols), uint8."""
        best: NDArray[np.uint8] = self.choice()[0]
        return best


class Tiles(ABC):
    """A network that sees one tile after the other."""

    def __init__(self, scaling: Scaling, stride: int) -> None:
        self.factor = 1
        """Pixels along an axis for one cell of `scores`."""
        self._scaling = scaling
        self._stride = stride

    @abstractmethod
    def _run(self, image: torch.Tensor) -> torch.Tensor: ...

    def _scores(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> torch.Tensor:
        rows, cols = valid.shape
        image = self._scaling.image(values, valid, (round_up(rows, self._stride), round_up(cols, self._stride)))
        return self._run(image)[:, :, : -(-rows // self.factor), : -(-cols // self.factor)]

    @torch.inference_mode()
    def scores(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Scores of a tile of any size, before the last upsampling: (classes, cells down, cells across)."""
        out: NDArray[np.float32] = self._scores(values, valid)[0].float().cpu().numpy()
        return out

    def channels(self, values: NDArray[Any], valid: NDArray[np.bool_], core: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Number of the best channel over `core` of a tile: (rows, cols), uint8."""
        best: NDArray[np.uint8] = self.choice(values, valid, core, confidence=False)[0]
        return best

    @torch.inference_mode()
    def choice(
        self,
        values: NDArray[Any],
        valid: NDArray[np.bool_],
        core: tuple[slice, slice],
        *,
        confidence: bool,
        probabilities: bool = False,
    ) -> Choice:
        """`channels` and, with `confidence`, how sure the network is: (1 or 3, rows, cols)."""
        scores = self._scores(values, valid)[:, :, core[0], core[1]]
        choice: Choice = choose(scores, confidence=confidence, probabilities=probabilities).cpu().numpy()
        return choice


class _GraphTiles(Tiles):
    """Tiles of a network that is known layer by layer."""

    def __init__(self, graph: Graph, scaling: Scaling, precision: Precision, tile: int, *, coarse: bool) -> None:
        super().__init__(scaling, graph.stride)
        last = graph.nodes[-1].layer
        if coarse and isinstance(last, Interpolate) and last.mode == "bilinear" and last.factor == last.columns:
            self.factor = last.factor
            graph = Graph(graph.bands, graph.nodes[:-1])
        self._program = Program(graph, scaling.device, DTYPES[precision], (tile, tile))

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        scores = RowStream(self._program).push(image, last=True)
        assert scores is not None, "a whole image gives scores"
        return scores


class _ModuleTiles(Tiles):
    """Tiles of any module, as torch runs it."""

    def __init__(
        self, network: nn.Module, scaling: Scaling, precision: Precision, stride: int, *, coarse: bool
    ) -> None:
        super().__init__(scaling, stride)
        self._network = network.eval().to(scaling.device).to(memory_format=torch.channels_last)
        self._precision = precision
        self._cut: int | None = None
        if coarse:
            self._find_last_upsampling()

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        with self._autocast(), _Upsamplings(self._cut):
            out: torch.Tensor = self._network(image)
        return out

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._scaling.device.type, DTYPES[self._precision])

    @torch.inference_mode()
    def _find_last_upsampling(self) -> None:
        """When the scores are a bilinear upsampling of something, tiles are cheaper to blend before it."""
        gain = self._scaling.gain
        side = 4 * max(self._stride, 8)
        with _Upsamplings(None) as seen:
            out = self._network(gain.new_zeros(1, gain.numel(), side, side))
        if not seen.calls or seen.calls[-1][1] is not out:
            return
        factors = {side / cells for cells in seen.calls[-1][0].shape[2:]}
        if len(factors) == 1 and (factor := factors.pop()).is_integer() and self._stride % factor == 0:
            self.factor, self._cut = int(factor), len(seen.calls) - 1


def make_tiles(
    network: nn.Module, graph: Graph | None, scaling: Scaling, precision: Precision, grid: tuple[int, int, bool]
) -> Tiles:
    """`network`, or its `graph` where there is one, for tiles: `grid` is stride, side, and whether they are blended."""
    if graph is None:
        return _ModuleTiles(network, scaling, precision, grid[0], coarse=grid[2])
    return _GraphTiles(graph, scaling, precision, grid[1], coarse=grid[2])


class _Upsamplings(TorchFunctionMode):
    """Watches bilinear `interpolate` calls; call number `cut` gives back its input instead."""

    def __init__(self, cut: int | None) -> None:
        super().__init__()
        self._cut = cut
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        names = ("input", "size", "scale_factor", "mode", "align_corners")
        given = {**dict(zip(names, args, strict=False)), **options}
        ours = func is functional.interpolate and given.get("mode") == "bilinear" and not given.get("align_corners")
        out = given["input"] if ours and len(self.calls) == self._cut else func(*args, **options)
        if ours:
            self.calls.append((given["input"], out))
        return out


class Upsampler:
    """The last upsampling of blended score maps, a few rows at a time, to class numbers."""

    def __init__(
        self, classes: int, factor: int, device: str, *, confidence: bool = False, probabilities: bool = False
    ) -> None:
        self._device = torch.device(device)
        layer = Interpolate(factor, factor, "bilinear") if factor > 1 else Pointwise(Plain(torch.clone))
        node = Node(layer, (0,), classes, columns=Fraction(factor), name="upsampling")
        self._stream = RowStream(Program(Graph(classes, (node,)), self._device, torch.float32, (1, 1)))
        self._confidence, self._probabilities = confidence, probabilities

    @torch.inference_mode()
    def push(self, scores: NDArray[np.float32], *, last: bool) -> Choice | None:
        """The next rows of cells, (classes, rows, cols), to what is chosen in rows of pixels."""
        wide = self._stream.push(torch.from_numpy(scores)[None].to(self._device), last=last)
        if wide is None:
            return None
        choice: Choice = choose(wide, confidence=self._confidence, probabilities=self._probabilities).cpu().numpy()
        return choice


def choose(scores: torch.Tensor, *, confidence: bool = False, probabilities: bool = False) -> torch.Tensor:
    """Scores (1, classes, rows, cols) to a `Choice` on their device: of equal scores the first channel is the best."""
    best = scores[0].argmax(dim=0).to(torch.uint8)[None]
    return torch.cat([best, confidence_planes(scores[0], probabilities=probabilities)]) if confidence else best
