"""What PyTorch does not promise is there; and where it is not, a run goes on without it and says so."""

from __future__ import annotations

import platform
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.errors import TraceError
from espalier.pruning import torch_private
from espalier.pruning.networks import build
from espalier.pruning.slimming import int8_convolutions
from espalier.pruning.slimming.recalibration import recalibrate_bn
from espalier.pruning.torch_private import storage_key, tree_leaves, tree_map
from espalier.pruning.trace import trace
from espalier.search.tasks.precision import has_bf16

ROOT = Path(__file__).resolve().parents[2]
CHECKS = (
    torch_private.computes_in_bf16,
    torch_private.has_batch_statistics,
    torch_private.has_int8_convolutions,
    int8_convolutions.has_int8,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    """Operators are tried anew."""
    for check in CHECKS:
        check.cache_clear()
    yield
    for check in CHECKS:
        check.cache_clear()


def changed(*_: object, **__: object) -> Any:
    raise TypeError("qualname() takes 20 positional arguments\nbut 19 were given")


def other_numbers(*_: object, **__: object) -> Any:
    return torch.full((1, 2, 2, 2), 7.0)


BROKEN: list[Callable[..., Any] | None] = [None, changed, other_numbers]


def with_op(monkeypatch: pytest.MonkeyPatch, namespace: str, **ops: Callable[..., Any] | None) -> None:
    """Replaces operators; those that are None are missing, with all others of the namespace."""
    there = {name: op for name, op in ops.items() if op is not None}
    monkeypatch.setattr(torch.ops, namespace, types.SimpleNamespace(**there))


# ----------------------------------------------------------------------------------------------- it is there


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
def test_bf16_is_told() -> None:
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)


def test_statistics_of_batches_are_there() -> None:
    assert torch_private.has_batch_statistics()


@pytest.mark.skipif(not int8_convolutions.has_int8(), reason="PyTorch has no 8-bit convolutions here")
def test_8_bit_convolutions_are_there() -> None:
    assert torch_private.has_int8_convolutions()


def test_names_are_there() -> None:
    assert torch._ops.OpOverload is torch_private.OpOverload
    assert nn.modules.batchnorm._BatchNorm in torch_private.BATCH_NORMS
    assert nn.modules.batchnorm._NormBase in torch_private.NORMS
    assert nn.modules.conv._ConvNd in torch_private.CONVOLUTIONS
    assert torch._tensor in torch_private.PYTHON_FUNCTIONS
    assert torch_private.schema_of(torch.ops.aten.relu.default).name == "aten::relu"
    from torch.utils import _pytree

    assert _pytree.tree_leaves([1, (2,)]) == [1, 2]
    tensor = torch.zeros(4)
    assert storage_key(tensor) == tensor.untyped_storage()._cdata == storage_key(tensor[1:])


def test_private_names_stand_in_one_module() -> None:
    private = re.compile(
        r"torch\.ops\.(?!aten\.)|torch(\.\w+)*\._\w|\._(cdata|schema|BatchNorm|NormBase|ConvNd)\b|import _pytree"
        r"|batch_norm_update_stats"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("pruning", "agents", "search", "espalier/cli", "espalier/report")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "torch_private.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    assert not found


# ------------------------------------------------------------------------------------------- it is not there


@pytest.mark.parametrize("op", BROKEN[:2])
def test_without_a_word_on_bf16_the_processor_runs_in_fp32(
    monkeypatch: pytest.MonkeyPatch, op: Callable[..., Any] | None
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    with_op(monkeypatch, "mkldnn", _is_mkldnn_bf16_supported=op)
    with pytest.warns(
        RuntimeWarning, match=r"^torch \S+ has no mkldnn._is_mkldnn_bf16_supported as espalier knows"
    ):
        assert not has_bf16(CPU)
    assert not has_bf16(CPU)  # and says it once


@pytest.mark.parametrize("op", BROKEN)
def test_without_statistics_of_batches_norms_are_recalibrated_by_torch(
    monkeypatch: pytest.MonkeyPatch, op: Callable[..., Any] | None
) -> None:
    layer, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    batches = [torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last) for _ in range(2)]
    recalibrate_bn(plain, [batch.contiguous() for batch in batches])
    torch_private.has_batch_statistics.cache_clear()
    if op is None:
        monkeypatch.delattr(torch, "batch_norm_update_stats")
    else:
        monkeypatch.setattr(torch, "batch_norm_update_stats", op)
    with pytest.warns(RuntimeWarning, match="batch_norm_update_stats .*: norms are recalibrated by PyTorch's own"):
        recalibrate_bn(layer, batches)
    recalibrate_bn(layer, batches)
    torch.testing.assert_close(layer.running_var, plain.running_var)


@pytest.mark.parametrize("op", BROKEN)
@pytest.mark.parametrize("broken", ["qconv2d_pointwise", "qconv_prepack"])
def test_without_8_bit_convolutions_there_is_no_int8(
    monkeypatch: pytest.MonkeyPatch, broken: str, op: Callable[..., Any] | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    real = {name: getattr(torch.ops.onednn, name, None) for name in ("qconv2d_pointwise", "qconv_prepack")}
    with_op(monkeypatch, "onednn", **(real | {broken: op}))
    with pytest.warns(RuntimeWarning, match="onednn.qconv2d_pointwise .*: candidates run in fp32, not in int8$"):
        assert not int8_convolutions.has_int8()


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_op(monkeypatch, "mkldnn", _is_mkldnn_bf16_supported=changed)
    with pytest.warns(RuntimeWarning) as told:
        torch_private.computes_in_bf16()
    assert str(told[0].message) == (
        f"torch {torch.__version__} has no mkldnn._is_mkldnn_bf16_supported as espalier knows it (qualname() takes "
        "20 positional arguments): auto means fp32 on this processor"
    )


@pytest.mark.parametrize("storage", [types.SimpleNamespace()])
def test_without_storages_a_view_counts_for_itself(monkeypatch: pytest.MonkeyPatch, storage: Any) -> None:
    monkeypatch.setattr(Tensor, "untyped_storage", lambda self: storage)
    tensor = torch.zeros(4)
    with pytest.warns(RuntimeWarning, match="storage._cdata .*: a view counts as memory of its own$"):
        assert storage_key(tensor) != storage_key(tensor[1:])


def test_without_pytree_networks_are_traced_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"a": [1, (2, 3)], "b": torch.Size([4])}
    assert torch_private._mapped(lambda leaf: leaf, tree) == tree
    leaves: list[Any] = []
    torch_private._mapped(leaves.append, {"a": [1, (2, 3)], "b": 4})
    assert leaves == tree_leaves({"a": [1, (2, 3)], "b": 4}) == [1, 2, 3, 4]
    network = build("resnet20").eval()
    expected = trace(network, torch.zeros(1, 3, 32, 32)).digest
    for module in ("tracing.running", "tracing.following", "slimming.verification"):
        namespace = __import__(f"espalier.pruning.{module}", fromlist=["tree_map"])
        monkeypatch.setattr(namespace, "tree_map", torch_private._mapped)
    assert trace(network, torch.zeros(1, 3, 32, 32)).digest == expected
    assert tree_map(lambda leaf: leaf + 1, [1, (2,)]) == [2, (3,)]


def test_without_schemas_tracing_says_why_it_cannot() -> None:
    with pytest.raises(TraceError, match=r"does not tell the arguments of .*: install a release of torch that"):
        torch_private.schema_of(types.SimpleNamespace())
