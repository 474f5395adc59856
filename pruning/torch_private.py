"""What PyTorch does not promise: every private name of it that espalier uses, and what takes its place.

A release of PyTorch may drop or change any of these. Operators are tried once, on a few numbers, before anything
depends on them. Where one is missing, raises or gives other numbers, a warning says so in a line, and the
caller does without.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from espalier.errors import ConfigError, TraceError

if TYPE_CHECKING:
    from torch._ops import OpOverload as OpOverload
else:
    OpOverload = type(torch.ops.aten.relu.default)
    """Class of an ATen overload."""

BATCH_NORMS: tuple[type[nn.modules.batchnorm._BatchNorm], ...] = (
    getattr(nn.modules.batchnorm, "_BatchNorm", nn.BatchNorm2d),
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)
"""Layers with statistics of batches, and what users derive from their base class."""
NORMS: tuple[type[nn.modules.batchnorm._NormBase], ...] = (
    *BATCH_NORMS,
    getattr(nn.modules.batchnorm, "_NormBase", nn.BatchNorm2d),
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
"""Those, and instance norms."""
CONVOLUTIONS: tuple[type[nn.modules.conv._ConvNd], ...] = (
    getattr(nn.modules.conv, "_ConvNd", nn.Conv2d),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Convolutions, transposed ones among them."""
PYTHON_FUNCTIONS: tuple[Any, ...] = tuple(
    module for module in (nn.functional, torch.functional, getattr(torch, "_tensor", None)) if module is not None
)
"""Modules of torch functions that are written in Python."""


def schema_of(target: Any) -> Any:
    """Arguments and results of an ATen overload.

    Raises:
        TraceError: PyTorch does not tell them any more.
    """
    try:
        return target._schema
    except AttributeError:
        raise TraceError(
            f"torch {torch.__version__} does not tell the arguments of {target}, without which no network can be "
            "traced: install a release of torch that espalier was tested with"
        ) from None


def storage_key(tensor: Tensor) -> int:
    """The same number for tensors that share their storage; where PyTorch does not say, one for each."""
    try:
        key: int = tensor.untyped_storage()._cdata
    except (AttributeError, RuntimeError) as error:
        _say("storage._cdata", error, "a view counts as memory of its own")
        key = id(tensor)
    return key


def kept_key(tensor: Tensor) -> Any:
    """What keeps the `storage_key` of a tensor from being given to another storage, but not its numbers."""
    try:
        from torch.multiprocessing.reductions import StorageWeakRef

        return StorageWeakRef(tensor.untyped_storage())
    except (ImportError, AttributeError, RuntimeError):
        return tensor


class CallMode(SchemaCheckMode):
    """Sees ATen calls as they are made, before composite ones fall apart: `called` takes their place.

    PyTorch has modes above autograd for itself alone; this stands in for the one that checks schemas.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)

    @abstractmethod
    def called(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the call and returns its result."""

    def __enter__(self) -> CallMode:
        self._python_dispatcher = enable_python_dispatcher()
        self._python_dispatcher.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._python_dispatcher.__exit__(*raised)


def _dispatched(mode: CallMode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    # Without the dispatcher in Python, what composite operations are made of runs at full speed.
    with torch._C.DisableTorchFunction(), no_python_dispatcher():
        return mode.called(func, args, kwargs or {})


# Set in the class body, it would be wrapped for the compiler, which takes seconds to import.
CallMode.__torch_dispatch__ = _dispatched  # type: ignore[method-assign, assignment]


class _MacCounter(TorchDispatchMode):
    """Counts the multiply-adds of what runs, as PyTorch's own counter does, without following modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0


def _count(mode: _MacCounter, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    result = func(*args, **(kwargs or {}))
    if func.overloadpacket in flop_registry:
        mode.macs += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result) // 2
    return result


_MacCounter.__torch_dispatch__ = _count  # type: ignore[method-assign, assignment]


def is_transforming() -> bool:
    """Whether a transform of torch.func, such as vmap, is under way, in which tensors say other shapes."""
    try:
        return torch._C._functorch.maybe_current_level() is not None
    except AttributeError:
        return False


def untransformed(tensor: Tensor) -> Tensor:
    """The tensor that one inside of ``torch.func.vmap`` or ``grad`` stands for; any other as it is."""
    while is_transforming() and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


@dataclass(frozen=True)
class Vmapped:
    """How ``torch.func.vmap`` maps a call: for each tensor that it is given, and each that it makes, in order.

    Attributes:
        given: level of every vmap around it -> the dimension that it maps.
        made: likewise.
    """

    given: tuple[dict[int, int], ...]
    made: tuple[dict[int, int], ...]

    def call(self, function: Callable[..., Any], arguments: Any) -> Any:
        """The call made again, on tensors as they are outside of it.

        Args:
            function: that is mapped.
            arguments: nested lists, tuples and dicts, args and kwargs.
        """

        def on(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            args, kwargs = tree_map(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, arguments)
            result = function(*args, **kwargs)
            return tuple(result) if isinstance(result, list) else result

        call: Callable[..., Any] = on
        for level in sorted({level for dims in self.given for level in dims}, reverse=True):
            made: Any = tuple(dims.get(level) for dims in self.made)
            given = tuple(dims.get(level) for dims in self.given)
            call = torch.func.vmap(call, given, made[0] if len(made) == 1 else made, randomness="same")
        return call(*(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)))


def vmapped_by(arguments: Any, result: Any) -> Vmapped | None:
    """How a call is mapped by ``torch.func.vmap``; None where it is not."""
    given, made = (
        tuple(_mapped_dimensions(leaf) for leaf in tree_leaves(each) if isinstance(leaf, Tensor))
        for each in (arguments, result)
    )
    return Vmapped(given, made) if any(given) else None


def _mapped_dimensions(tensor: Tensor) -> dict[int, int]:
    found = {}
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            found[torch._C._functorch.maybe_get_level(tensor)] = torch._C._functorch.maybe_get_bdim(tensor)
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return found


def counted(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """Makes an ATen call: its result and its multiply-adds, as PyTorch's own counter has them."""
    how = "by running" if is_transforming() else _counting(target)
    if how == "by running" or (how == "by shapes" and args[1].dim() == 1):  # what it falls apart into is counted
        with _MacCounter() as counter:
            return target(*args, **kwargs), counter.macs
    result = target(*args, **kwargs)
    if how == "by shapes":
        return result, (args[0] if "transpose" in target.name() else result).numel() * args[1][:1].numel()
    return result, flop_registry[target.overloadpacket](*args, **kwargs, out_val=result) // 2 if how else 0


_BY_SHAPES = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_WITHOUT_PRODUCTS = ("batch_norm", "layer_norm", "group_norm", "dropout", "reshape", "contiguous", "to", "softmax")


@functools.cache
def _counting(target: OpOverload) -> str:
    """How an operation's multiply-adds are counted; "" if it has none."""
    if target.overloadpacket in flop_registry:
        return "by formula"
    name = schema_of(target).name.partition("::")[2]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return (
        "by shapes" if name in _BY_SHAPES else "by running" if composite and name not in _WITHOUT_PRODUCTS else ""
    )


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Compiled networks, and attention's fused kernel, run as their own code has it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if "torch._dynamo" in sys.modules:  # takes seconds to import; before it is, nothing is compiled
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def computed_weights(network: nn.Module) -> list[str]:
    """Paths of the layers whose weights are computed from other tensors, as by weight norm or a parametrisation."""
    return [
        path
        for path, module in network.named_modules()
        if hasattr(module, "parametrizations")
        or any(type(hook).__name__ in ("WeightNorm", "SpectralNorm") for hook in module._forward_pre_hooks.values())
    ]


_BACKWARD: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)
"""Number of the backward pass that this thread runs; -1 for none."""


class OnceAPass:
    """Refuses layers that run again in the backward pass, as under gradient checkpointing.

    There they would run with their own weights, and not with those that the pass had. What is computed again by
    functions alone is not seen.

    Args:
        network: to watch, while it trains; copies of it may do as they like.
        whose: gives a pass other weights, for the refusal.
    """

    def __init__(self, network: nn.Module, whose: str) -> None:
        self._layers, self._whose = weakref.WeakSet(network.modules()), whose
        if _BACKWARD is None:
            missing = AttributeError("it is missing")
            _say("_current_graph_task_id", missing, f"{whose} do not notice gradient checkpointing")

    def attach(self) -> list[Any]:
        """Handles to end it."""
        return [layer.register_forward_pre_hook(self._before) for layer in self._layers]

    def _before(self, layer: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or not layer.training or layer not in self._layers:
            return
        if _BACKWARD is not None and _BACKWARD() >= 0:
            raise ConfigError(
                f"{self._whose} do not reach layers that are computed again: turn gradient checkpointing off"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> OnceAPass:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OnceAPass, (nn.Sequential(), self._whose)  # of a part that is pickled: watches nothing


# -- nested containers


def tree_leaves(tree: Any) -> list[Any]:
    """What is in nested containers, in order."""
    leaves: list[Any] = []
    try:
        from torch.utils import _pytree
    except ImportError:
        _mapped(leaves.append, tree)
        return leaves
    return list(_pytree.tree_leaves(tree))


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nested containers, `function` applied to what is in them."""
    try:
        from torch.utils import _pytree
    except ImportError:
        return _mapped(function, tree)
    return _pytree.tree_map(function, tree)


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Lists, tuples and dicts, which is what PyTorch itself need not be asked for."""
    if isinstance(tree, dict):
        return type(tree)((key, _mapped(function, value)) for key, value in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(function, value) for value in tree))
    if type(tree) in (list, tuple):
        return type(tree)(_mapped(function, value) for value in tree)
    return function(tree)


# -- operators


@functools.cache
def computes_in_bf16() -> bool:
    """Whether oneDNN says that this processor computes in bf16."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except Exception as error:
        _say("mkldnn._is_mkldnn_bf16_supported", error, "auto means fp32 on this processor")
        return False


@functools.cache
def has_batch_statistics() -> bool:
    """Whether `batch_statistics` works."""
    return _works(
        "batch_norm_update_stats",
        lambda: torch.stack(batch_statistics(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))),
        torch.tensor([[2.0, 2.0], [1.0, 4.0]]),
        "norms are recalibrated by PyTorch's own layers, which take longer",
    )


def batch_statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every column of (n, columns), where `has_batch_statistics`."""
    none = torch.zeros(2, rows.shape[1])
    mean, variance = torch.batch_norm_update_stats(rows, none[0], none[1], 0.0)
    return mean, variance


@functools.cache
def has_int8_convolutions() -> bool:
    """Whether `pack_int8` and `convolve_int8` work."""
    weight = torch.tensor([[2], [-3]], dtype=torch.int8)[..., None, None]  # 1.0 and -1.5
    scales, how = torch.tensor([0.5, 0.5]), ([1, 1], [0, 0], [1, 1], 1)

    def convolved() -> Tensor:
        levels = torch.full((1, 1, 2, 2), 5, dtype=torch.uint8)  # 0.25 (5 - 1) = 1.0
        packed = pack_int8(weight, scales, 0.25, 1, how, [1, 1, 2, 2])
        return convolve_int8(levels, 0.25, 1, packed, scales, torch.zeros(2, dtype=torch.long), None, how)

    wanted = torch.tensor([1.0, -1.5])[:, None, None].expand(1, 2, 2, 2)
    return _works("onednn.qconv2d_pointwise", convolved, wanted, "candidates run in fp32, not in int8")


How = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation and groups of a convolution."""


def pack_int8(weight: Tensor, scales: Tensor, scale: float, zero: int, how: How, shape: Sequence[int]) -> Tensor:
    """The weights of a convolution, laid out as oneDNN wants them.

    Args:
        weight: int8 (out channels, in channels / groups, height, width).
        scales: (out channels,) of the weights.
        scale: of what the layer reads.
        zero: its zero point.
        how: the layer's.
        shape: of what it reads.
    """
    stride, padding, dilation, groups = how
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight, scales, scale, zero, stride, padding, dilation, groups, shape
    )
    return packed


def convolve_int8(
    levels: Tensor,
    scale: float,
    zero: int,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    how: How,
) -> Tensor:
    """A convolution of uint8 levels by packed weights, float32; arguments as of `pack_int8`."""
    stride, padding, dilation, groups = how
    as_float = 1.0, 0, torch.float32
    done: Tensor = torch.ops.onednn.qconv2d_pointwise(
        levels,
        scale,
        zero,
        packed,
        scales,
        zeros,
        bias,
        stride,
        padding,
        dilation,
        groups,
        *as_float,
        "none",
        [],
        "",
    )
    return done


def _works(name: str, run: Callable[[], Tensor], wanted: Tensor, instead: str) -> bool:
    """Whether an operator gives what it is to give; says what is done instead where it does not."""
    try:
        got = run()
        if got.shape == wanted.shape and torch.allclose(got.float(), wanted, atol=1e-3):
            return True
        error: Exception = ValueError("it gives other numbers")
    except Exception as raised:  # a private operator may fail in any way
        error = raised
    _say(name, error, instead)
    return False


def _say(name: str, error: Exception, instead: str) -> None:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"torch {torch.__version__} has no {name} as espalier knows it ({why}): {instead}",
        RuntimeWarning,
        stacklevel=3,
    )


def tell_recurrent(module: nn.Module) -> None:
    """Has a recurrent layer, which keeps a list of its weights, list them anew; any other is left alone."""
    if isinstance(module, nn.RNNBase):
        module.__dict__["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]
