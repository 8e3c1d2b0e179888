"""Random networks whose layers can all be streamed, in every way that their sizes fit; and ways to run them."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.stream import Program, RowStream

BANDS = 3
T = TypeVar("T")
Choose = Callable[[Sequence[Any]], Any]


class Steps(nn.Module):
    """Modules one after the other; ``"save"`` keeps a map, ``("add" | "cat", k)`` joins the k-th one kept."""

    def __init__(self, steps: list[nn.Module | str | tuple[str, int]]) -> None:
        super().__init__()
        self.steps = [step if not isinstance(step, nn.Module) else None for step in steps]
        self.layers = nn.ModuleList([step if isinstance(step, nn.Module) else nn.Identity() for step in steps])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for step, layer in zip(self.steps, self.layers, strict=True):
            if step is None:
                x = layer(x)
            elif isinstance(step, str):
                kept.append(x)
            else:
                join, other = step[0], kept[step[1]]
                x = x + other if join == "add" else torch.cat([other, x], dim=1)
        return x


class Up(nn.Module):
    """Upsampling by a whole factor."""

    def __init__(self, factor: int, mode: str) -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, scale_factor=self.factor, mode=self.mode)


class _Builder:
    """Adds steps of random kinds, each of which keeps the size or changes it by its factor exactly."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.steps: list[nn.Module | str | tuple[str, int]] = []
        self.channels = BANDS
        self.scale = Fraction(1)
        self.kept: list[tuple[int, Fraction]] = []

    def conv(self) -> None:
        """The same size: padded by the convolution ('same' too), or by a layer before it; even kernels too.

        Or padded by more than it needs, and cut to its size again.
        """
        choose, cut = self.choose, (0, 0, 0, 0)
        kernel, dilation = (choose([3, 1, 2, 4, 5]), choose([3, 1, 2])), (choose([1, 1, 2]), choose([1, 2]))
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        groups = choose([1, 1, self.channels])
        out = self.channels if groups > 1 else choose([1, 2, 4, 6])
        padding: Any = 0
        if all(span % 2 == 0 for span in spans) and choose([True, False]):
            padding = choose(["same", (spans[0] // 2, spans[1] // 2)])
        else:
            top, left = choose(range(spans[0] + 1)), choose(range(spans[1] + 1))
            cut = (choose([0, 0, 1, 2]), choose([0, 0, 1]), choose([0, 0, 0, 1, 2]), choose([0, 0, 0, 1, 2]))
            needed = (left, spans[1] - left, top, spans[0] - top)
            pads = tuple(a + b for a, b in zip(needed, cut, strict=True))
            self.steps.append(choose([nn.ZeroPad2d, nn.ReplicationPad2d, lambda p: nn.ConstantPad2d(p, 0.7)])(pads))
        options: dict[str, Any] = {"padding": padding, "dilation": dilation, "groups": groups}
        mode = choose(["zeros", "zeros", "replicate"])
        self.steps.append(
            nn.Conv2d(self.channels, out, kernel, bias=choose([True, False]), padding_mode=mode, **options)
        )
        if any(cut):
            left, right, top, bottom = cut
            self.steps.append(nn.ZeroPad2d((-left, -right, -top, -bottom)))
        self.channels = out

    def down(self) -> None:
        """Smaller by a factor: a convolution or a pool."""
        factor = self.choose([2, 2, 3] if self.scale.numerator % 3 else [2])
        if self.choose([True, False]):
            self.steps.append(self._pool(factor))
        else:
            pads = (self.choose([0, 1, 2]), self.choose([0, 1]))
            kernel = tuple(2 * p + self.choose(range(1, factor + 1)) for p in pads)
            out = self.choose([2, 4])
            self.steps.append(nn.Conv2d(self.channels, out, kernel, stride=factor, padding=pads))
            self.channels = out
        self.scale *= factor

    def _pool(self, factor: int) -> nn.Module:
        choices: list[nn.Module] = [nn.MaxPool2d(factor), nn.AvgPool2d(factor), nn.MaxPool2d(3, factor, 1)]
        choices += [nn.AvgPool2d(3, factor, 1), nn.MaxPool2d(3, factor, ceil_mode=True)]
        choices += [nn.MaxPool2d(factor, ceil_mode=True), nn.MaxPool2d((factor, 1), factor)]
        pool: nn.Module = self.choose(choices)
        return pool

    def flat_pool(self) -> None:
        """A pool that keeps the size."""
        self.steps.append(self.choose([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d((5, 1), 1, (2, 0))]))

    def up(self, factor: int | None = None) -> None:
        """Larger by a factor: interpolated, or a transposed convolution."""
        factor = factor or self.choose([2, 3])
        how = self.choose(["bilinear", "nearest", "transposed"])
        if how == "transposed":
            pads = (self.choose([0, 1, 2]), self.choose([0, 1]))
            extras = tuple(self.choose(range(min(factor - 1, 2 * p) + 1)) for p in pads)
            kernel = tuple(factor + 2 * p - e for p, e in zip(pads, extras, strict=True))
            options: dict[str, Any] = {"stride": factor, "padding": pads, "output_padding": extras}
            groups = self.choose([1, self.channels])
            layer = nn.ConvTranspose2d(self.channels, self.channels, kernel, groups=groups, **options)
            self.steps.append(layer)
        else:
            self.steps.append(Up(factor, how))
        self.scale /= factor

    def pointwise(self) -> None:
        """A normalisation or an activation."""
        kinds = [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.SiLU(), nn.Sigmoid(), nn.Softmax(dim=1)]
        kinds += [nn.BatchNorm2d(self.channels), nn.BatchNorm2d(self.channels, affine=False), nn.Dropout(0.5)]
        kinds += [nn.PReLU(self.channels), nn.Hardtanh(-0.5, 0.8)]
        self.steps.append(self.choose(kinds))

    def save(self) -> None:
        """Keep this map for later."""
        self.steps.append("save")
        self.kept.append((self.channels, self.scale))

    def join(self) -> None:
        """Add or append a map that was kept, if one has this size."""
        fitting = [k for k, (_, scale) in enumerate(self.kept) if scale == self.scale]
        if not fitting:
            return
        index = self.choose(fitting)
        channels = self.kept[index][0]
        if channels == self.channels and self.choose([True, False]):
            self.steps.append(("add", index))
        else:
            self.steps.append(("cat", index))
            self.channels += channels

    def finish(self, classes: int) -> None:
        """Back to the image's size, to scores."""
        while self.scale.numerator > 1:
            self.up(3 if self.scale.numerator % 3 == 0 else 2)
            self.pointwise()
            self.join()
        while self.scale < 1:
            factor = 3 if self.scale.denominator % 3 == 0 else 2
            self.steps.append(nn.AvgPool2d(factor))
            self.scale *= factor
        self.steps.append(nn.Conv2d(self.channels, classes, 1))


def build(choose: Choose, seed: int, classes: int = 4, most: int = 9) -> Steps:
    """A network of random layers with random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = _Builder(choose)
        kinds = ["conv", "conv", "down", "pointwise", "pointwise", "save", "join", "flat_pool", "up"]
        for _ in range(choose(range(2, most))):
            kind = choose(kinds)
            if (kind == "down" and builder.scale >= 8) or (kind == "up" and builder.scale.denominator > 1):
                continue
            if kind == "up" and builder.scale.numerator % 2 == 0:
                builder.up(2)
            else:
                getattr(builder, kind)()
        builder.finish(classes)
        network = Steps(builder.steps).eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.3, 2)
                    if module.affine:
                        module.weight.normal_(1, 0.3)
                        module.bias.normal_()
    return network


@st.composite
def networks(draw: st.DrawFn) -> Steps:
    """Any such network."""
    return build(lambda options: draw(st.sampled_from(options)), draw(st.integers(0, 99)))


def image(rows: int, cols: int, dtype: torch.dtype = torch.float64, bands: int = BANDS, seed: int = 0) -> torch.Tensor:
    """Noise."""
    values = torch.randn(1, bands, rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def on_grid(pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """Padded with zeros to the network's grid, as the project does."""
    rows, cols = pixels.shape[2:]
    return functional.pad(pixels, (0, -cols % stride, 0, -rows % stride)).contiguous(memory_format=torch.channels_last)


def programmed(graph: Graph, dtype: torch.dtype, strip: int, cols: int) -> Program:
    """The graph, ready for strips of that shape on the CPU."""
    return Program(graph, torch.device("cpu"), dtype, (strip, cols))


def streamed(program: Program, pixels: torch.Tensor, strip: int, start: int = 0) -> dict[int, torch.Tensor]:
    """Scores of each row (classes, cols) from a stream that begins at `start`, fed strip by strip to the bottom."""
    stream, rows = RowStream(program), {}
    for row in range(start, pixels.shape[2], strip):
        scores = stream.push(pixels[:, :, row : row + strip], last=row + strip >= pixels.shape[2])
        if scores is not None:
            first = start + stream.scored - scores.shape[2]
            rows.update({first + k: scores[0, :, k] for k in range(scores.shape[2])})
    return rows


def stacked(rows: dict[int, torch.Tensor], start: int = 0) -> torch.Tensor:
    """Rows from `start` on as one tensor (1, classes, rows, cols)."""
    return torch.stack([rows[row] for row in range(start, max(rows) + 1)], dim=1)[None]
