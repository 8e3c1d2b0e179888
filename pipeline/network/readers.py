"""How each kind of call that torch.export records becomes a layer. `READERS` names all that can be streamed.

`capture.py` goes through all calls of a network; a `Recorder` keeps what has been read so far.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from fcn_batch.pipeline.network.graph import Node
from fcn_batch.pipeline.network.layers import (
    Convolution,
    Interpolate,
    Layer,
    Pad,
    Plain,
    Pointwise,
    Scale,
    Sliding,
    Transposed,
    TransposedConvolution,
)


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
        self.nodes[-1] = replace(node, layer=replace(node.layer, function=convolution))
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


def _arguments(call: fx.Node) -> Iterator[Any]:
    """Positional and keyword arguments in the order of the operator's schema, its defaults filled in."""
    target: Any = call.target
    for index, argument in enumerate(target._schema.arguments):  # noqa: SLF001 - the only place that has them
        if index < len(call.args):
            yield call.args[index]
        else:
            yield call.kwargs.get(argument.name, argument.default_value)


def _pair(value: Any, default: int) -> tuple[int, int]:
    """A number for rows and one for columns."""
    if not value:
        return default, default
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _convolution(recorder: Recorder, call: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, groups = _arguments(call)
    kernel = recorder.constant(weight)
    if kernel.ndim != 4:
        raise Obstacle("not in two dimensions")
    strides, dilations = _pair(stride, 1), _pair(dilation, 1)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel.shape[2:], strict=True)]
    if isinstance(padding, str):
        if padding == "same" and any(span % 2 == 0 for span in spans):
            raise Obstacle("padding 'same' with an even kernel")
        pads = (spans[0] // 2, spans[1] // 2) if padding == "same" else (0, 0)
    else:
        pads = _pair(padding, 0)
    offset = kernel.new_zeros(kernel.shape[0]) if bias is None else recorder.constant(bias)
    function = Convolution(kernel, offset, strides, pads[1], dilations, groups)
    layer = Sliding(spans[0], strides[0], pads[0], ceil=False, fill=0.0, function=function)
    value = recorder.value(x)
    columns = recorder.columns(value) / strides[1]
    recorder.add(call, layer, (value,), channels=kernel.shape[0], columns=columns)


def _transposed(recorder: Recorder, call: fx.Node) -> None:
    x, weight, bias, stride, padding, extra, groups, dilation = _arguments(call)
    kernel, strides, pads = recorder.constant(weight), _pair(stride, 1), _pair(padding, 0)
    extras, dilations = _pair(extra, 0), _pair(dilation, 1)
    if kernel.ndim != 4:
        raise Obstacle("not in two dimensions")
    span = dilations[0] * (kernel.shape[2] - 1) + 1
    if span < strides[0]:
        raise Obstacle(f"its kernel of {span} is smaller than its stride of {strides[0]}")
    offset = None if bias is None else recorder.constant(bias)
    function = TransposedConvolution(kernel, offset, strides, pads[1], extras[1], dilations, groups)
    layer = Transposed(span, strides[0], pads[0], extras[0], function)
    value = recorder.value(x)
    columns = recorder.columns(value) * strides[1]
    recorder.add(call, layer, (value,), channels=kernel.shape[1] * groups, columns=columns)


def _batch_norm(recorder: Recorder, call: fx.Node) -> None:
    x, weight, bias, mean, variance, training, _, epsilon, _ = _arguments(call)
    if training or mean is None:
        raise Obstacle("it normalises by the image itself")
    factor = torch.rsqrt(recorder.constant(variance).to(torch.float64) + epsilon)
    if weight is not None:
        factor = factor * recorder.constant(weight)
    summand = -recorder.constant(mean) * factor
    if bias is not None:
        summand = summand + recorder.constant(bias)
    scale = Scale(factor[None, :, None, None], summand[None, :, None, None])
    before = recorder.last_convolution(x)
    if before is not None:
        recorder.replace_last(call, before.normalised(scale))
    else:
        kind = recorder.constant(mean)
        scale = Scale(scale.factor.to(kind.dtype), scale.summand.to(kind.dtype))
        recorder.add(call, Pointwise(scale), (recorder.value(x),))


def _relu(recorder: Recorder, call: fx.Node) -> None:
    before = recorder.last_convolution(call.args[0])  # type: ignore[arg-type]  # torch types it as any kind of argument
    if before is None:
        recorder.add(call, Pointwise(Plain(functional.relu)), (recorder.value(call.args[0]),))
        return
    recorder.replace_last(call, replace(before, relu=True))


def _pool(recorder: Recorder, call: fx.Node, function: Plain, fill: float) -> None:
    x, kernel, stride, padding, *rest = _arguments(call)
    dilation, ceil = rest[:2] if fill else (1, rest[0])
    kernels, pads = _pair(kernel, 1), _pair(padding, 0)
    strides, dilations = _pair(stride, 0), _pair(dilation, 1)
    strides = strides if strides[0] else kernels
    span = dilations[0] * (kernels[0] - 1) + 1
    value = recorder.value(x)
    layer = Sliding(span, strides[0], pads[0], bool(ceil), fill, function)
    recorder.add(call, layer, (value,), columns=recorder.columns(value) / strides[1])


def _max_pool(recorder: Recorder, call: fx.Node) -> None:
    _, kernel, stride, padding, dilation, ceil = _arguments(call)

    def pool(rows: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(rows, kernel, stride or None, (0, _pair(padding, 0)[1]), dilation, ceil_mode=ceil)

    _pool(recorder, call, Plain(pool), -torch.inf)


def _average_pool(recorder: Recorder, call: fx.Node) -> None:
    _, kernel, stride, padding, ceil, count_padding, divisor = _arguments(call)
    pads = _pair(padding, 0)
    if ceil or (any(pads) and not count_padding):
        raise Obstacle("windows that end outside of the image count less")

    def pool(rows: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(rows, kernel, stride or None, (0, pads[1]), divisor_override=divisor)

    _pool(recorder, call, Plain(pool), 0.0)


def _interpolate(recorder: Recorder, call: fx.Node) -> None:
    x, *_ = _arguments(call)
    bilinear = "bilinear" in str(call.target)
    if bilinear and list(_arguments(call))[2]:
        raise Obstacle("aligned at the corners, so the whole image's size enters")
    value = recorder.value(x)
    before, after = x.meta["val"].shape, call.meta["val"].shape
    factors = [Fraction(int(b), int(a)) for a, b in zip(before[2:], after[2:], strict=True)]
    given = list(_arguments(call))[-1] or factors  # 2.0002 gives the size of 2, but lies between the pixels elsewhere
    if any(f.denominator != 1 for f in factors) or list(given) != factors:
        raise Obstacle(f"by {factors[0]} x {factors[1]}, no whole factors")
    rows, columns = int(factors[0]), int(factors[1])
    layer = Interpolate(rows, columns, "bilinear" if bilinear else "nearest")
    recorder.add(call, layer, (value,), columns=recorder.columns(value) * columns)


def _pad(recorder: Recorder, call: fx.Node) -> None:
    x, pads, mode, fill = _arguments(call)
    left, right, top, bottom = (*pads, 0, 0)[:4]
    cuts = min(pads) < 0 and mode != "constant"
    if mode not in ("constant", "replicate") or len(pads) > 4 or cuts:
        raise Obstacle(f"padding {mode} {list(pads)}")
    layer = Pad(top, bottom, left, right, (fill or 0.0) if mode == "constant" else None)
    recorder.add(call, layer, (recorder.value(x),))


def _slice(recorder: Recorder, call: fx.Node) -> None:
    """Rows or columns cut off, as many at each edge whatever the image's size."""
    x, dim, start, stop, step = _arguments(call)
    size, first, last = int(x.meta["val"].shape[dim]), start or 0, sys.maxsize if stop is None else stop
    if step == 1 and first == 0 and last >= size:
        recorder.values[call] = recorder.value(x)
        return
    if dim % 4 not in (2, 3) or step != 1 or first < 0 or 0 <= last < size:
        raise Obstacle(f"[{first}:{last}:{step}] of dimension {dim}, not a number of rows or columns at an edge")
    before, after = -first, min(last, 0)
    layer = Pad(before, after, 0, 0, 0.0) if dim % 4 == 2 else Pad(0, 0, before, after, 0.0)
    recorder.add(call, layer, (recorder.value(x),))


def _cat(recorder: Recorder, call: fx.Node) -> None:
    tensors, dim = _arguments(call)
    if dim not in (1, -3):
        raise Obstacle(f"along dimension {dim}")
    values = tuple(recorder.value(t) for t in tensors)
    channels = sum(map(recorder.channels, values))
    recorder.add(call, Pointwise(Plain(lambda *rows: torch.cat(rows, dim=1))), values, channels=channels)


def _identity(recorder: Recorder, call: fx.Node) -> None:
    if "dropout" in str(call.target) and list(_arguments(call))[2]:
        raise Obstacle("at random, in evaluation too")
    recorder.values[call] = recorder.value(call.args[0])


def _binary(function: Callable[..., torch.Tensor]) -> "_Reader":
    """A sum, product, … of two maps, or of a map and a constant for each channel."""

    def read(recorder: Recorder, call: fx.Node) -> None:
        left, right = call.args[:2]
        options = dict(call.kwargs)
        if isinstance(left, fx.Node) and isinstance(right, fx.Node) and {left, right} <= recorder.values.keys():
            values = (recorder.value(left), recorder.value(right))
            if recorder.channels(values[0]) != recorder.channels(values[1]):
                raise Obstacle("of maps with different numbers of channels")
            recorder.add(call, Pointwise(Plain(lambda a, b: function(a, b, **options))), values)
            return
        constants = [_per_channel(recorder, a) for a in (left, right)]
        value = recorder.value(left if constants[0] is None else right)
        shape = call.meta["val"].shape
        if len(shape) != 4 or shape[0] != 1:
            raise Obstacle("a constant of more dimensions than the map")

        def with_constant(rows: torch.Tensor) -> torch.Tensor:
            a, b = (rows if c is None else c.to(rows) if isinstance(c, torch.Tensor) else c for c in constants)
            return function(a, b, **options)

        recorder.add(call, Pointwise(Plain(with_constant)), (value,), channels=int(shape[1]))

    return read


def _per_channel(recorder: Recorder, argument: Any) -> torch.Tensor | float | None:
    """A constant operand; None for a map."""
    if isinstance(argument, int | float):
        return argument
    if argument in recorder.values:
        return None
    constant = recorder.constant(argument)
    if constant.ndim > 1 and constant.shape[-2:] != (1, 1):
        raise Obstacle("a constant with a value for each pixel")
    if constant.ndim == 1 and constant.numel() > 1:
        raise Obstacle("a constant with a value for each column")
    return constant


def _elementwise(recorder: Recorder, call: fx.Node) -> None:
    """A function of each number, or (softmax) of the channels of each pixel."""
    if "softmax" in str(call.target) and call.args[1] not in (1, -3):
        raise Obstacle(f"along dimension {call.args[1]}")
    target: Any = call.target
    rest, options = call.args[1:], dict(call.kwargs)
    if any(isinstance(a, fx.Node) and a not in recorder.constants for a in rest):
        raise Obstacle("of two maps")
    others = [recorder.constants[a] if isinstance(a, fx.Node) else a for a in rest]

    def function(rows: torch.Tensor) -> torch.Tensor:
        moved = [o.to(rows) if isinstance(o, torch.Tensor) else o for o in others]
        result: torch.Tensor = out_of_place(rows, *moved, **options)
        return result

    name = str(target).removeprefix("aten.").split(".")[0].rstrip("_")
    out_of_place = getattr(getattr(torch.ops.aten, name), target._overloadname)  # noqa: SLF001 - rows are still needed
    recorder.add(call, Pointwise(Plain(function)), (recorder.value(call.args[0]),))


def _pointwise(recorder: Recorder, call: fx.Node) -> None:
    """A function of each number of one map or several of the same channels, and of numbers."""
    target: Any = call.target
    given = list(call.args)
    maps = [at for at, one in enumerate(given) if isinstance(one, fx.Node) and one in recorder.values]
    if not maps or call.meta["val"].ndim != 4:
        raise Obstacle("not of a map of features")
    for at, one in enumerate(given):
        if at not in maps and isinstance(one, fx.Node) and recorder.constant(one).numel() != 1:
            raise Obstacle("of a constant with several values")
    values = tuple(recorder.value(given[at]) for at in maps)
    if len({recorder.channels(value) for value in values}) > 1:
        raise Obstacle("of maps with different numbers of channels")
    fixed = [recorder.constants.get(one, one) if isinstance(one, fx.Node) else one for one in given]
    options, condition = dict(call.kwargs), name_of(call) == "where" and 0 in maps

    def function(*rows: torch.Tensor) -> torch.Tensor:
        arguments = list(fixed)
        for at, one in zip(maps, rows, strict=True):
            arguments[at] = one
        if condition:
            arguments[0] = arguments[0] != 0
        result: torch.Tensor = target(*arguments, **options)
        return result.to(rows[0].dtype)  # truth too: a stream keeps numbers

    recorder.add(call, Pointwise(Plain(function)), values)


_Reader = Callable[[Recorder, fx.Node], None]
READERS: dict[str, _Reader] = {
    "conv2d": _convolution,
    "conv_transpose2d": _transposed,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "upsample_bilinear2d": _interpolate,
    "upsample_nearest2d": _interpolate,
    "pad": _pad,
    "slice": _slice,
    "cat": _cat,
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach"), _identity),
    **dict.fromkeys(
        (
            *("leaky_relu", "hardtanh", "elu", "selu", "celu", "silu", "gelu", "mish", "softplus", "prelu", "relu6"),
            *("sigmoid", "tanh", "hardsigmoid", "hardswish", "clamp", "clamp_min", "softmax", "log_softmax"),
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            *("nan_to_num", "where", "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not"),
            *("abs", "neg", "exp", "log", "sqrt", "pow", "minimum", "maximum", "isnan", "isfinite", "sign", "floor"),
        ),
        _pointwise,
    ),
}
_POOLS = ("adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum", "amax", "amin", "max", "min", "std", "var")
_SPREADS = (
    "sort",
    "argsort",
    "topk",
    "cumsum",
    "roll",
    "flip",
    "rot90",
    "grid_sampler",
    "argmax",
    "median",
    "quantile",
)
WHOLE = {
    **dict.fromkeys(_POOLS, "pools the whole image"),
    **dict.fromkeys(("instance_norm", "group_norm", "layer_norm"), "normalises by the whole image"),
    **dict.fromkeys(_SPREADS, "looks anywhere in the image"),
    "scaled_dot_product_attention": "every pixel looks at every other",
    "linear": "its place in the image enters",
}
"""Calls that look at all of the image, unless it is along its channels."""
LOCAL = ("reflection_pad2d", "pixel_shuffle", "pixel_unshuffle", "max_pool2d_with_indices", "max_unpool2d", "getitem")
"""Calls that are known to look near by, but not how far: that is found by trying."""


def looks_everywhere(call: fx.Node) -> str | None:
    """Return how a call looks at all of the image; None when it does not, or only along channels."""
    name = name_of(call)
    if name not in WHOLE:
        return None
    dims = next((value for argument, value in _named_arguments(call) if argument in ("dim", "dims")), None)
    along = [dims] if isinstance(dims, int) else list(dims) if dims else []
    return None if along and all(one in (1, -3) for one in along) else WHOLE[name]


def is_local(recorder: Recorder, call: fx.Node) -> bool:
    """Return whether a call that is not known, or follows one, is sure to look near by only."""
    name, given = name_of(call), dict(_named_arguments(call))
    if name in LOCAL:
        return True
    if name == "pad":
        return given["mode"] in ("constant", "replicate", "reflect")
    if name not in READERS or name == "slice":
        return False
    if given.get("training") or given.get("train") or given.get("align_corners"):
        return False
    if name.startswith("upsample"):
        before, after = call.all_input_nodes[0].meta["val"].shape, call.meta["val"].shape
        return all(int(b) % int(a) == 0 for a, b in zip(before[2:], after[2:], strict=True))
    weights = name in ("conv2d", "conv_transpose2d", "batch_norm")
    fixed = [recorder.constants[one] for one in call.all_input_nodes if one in recorder.constants]
    if not weights and any(one.ndim > 1 and one.shape[-2:] != (1, 1) for one in fixed):
        return False  # a value for each pixel
    return "dim" not in given or given["dim"] in (1, -3)


def name_of(call: fx.Node) -> str:
    """Return the name of what is called, without its variants: conv2d."""
    return str(call.target).removeprefix("aten.").removeprefix("<built-in function ").split(".")[0].rstrip("_>")


def _named_arguments(call: fx.Node) -> Iterator[tuple[str, Any]]:
    schema = getattr(call.target, "_schema", None)
    if schema is not None:
        yield from zip((argument.name for argument in schema.arguments), _arguments(call), strict=True)
