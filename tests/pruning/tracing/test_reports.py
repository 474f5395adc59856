"""Networks as people who prune have reported them: what stopped other tools, or an earlier version of this one.

Each is traced, cut to half of every group and verified; how far its MACs can go down says what was frozen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import BudgetInfeasible
from espalier.pruning.graph.allocation import check_budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.pruning.tracing.grouping import reference_of
from espalier.pruning.tracing.label_run import LabelRun
from espalier.pruning.tracing.recording import record
from espalier.pruning.tracing.running import call

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


def halved(model: nn.Module, inputs: Inputs) -> tuple[ChannelGraph, nn.Module]:
    """The graph and the network of half of every group, which costs what was said and can be trained."""
    torch.manual_seed(0)
    graph = trace(model.eval(), inputs)
    widths = (graph.sizes + 1) // 2
    energies = channel_energies(model, graph).double().numpy()
    smaller = slim(model, graph, graph.keep_best(energies, widths))
    again = trace(smaller, inputs)
    assert int(again.macs(again.sizes)) == int(graph.macs(widths))
    assert sum(parameter.numel() for parameter in smaller.parameters()) == int(graph.params(widths))
    sum(output.float().sum() for output in call(smaller.train(), inputs)).backward()  # type: ignore[union-attr]
    smaller.eval()
    return graph, smaller


def sizes(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def least(graph: ChannelGraph) -> float:
    """The share of the MACs that is left with one channel per group."""
    return int(graph.macs(np.ones_like(graph.sizes))) / int(graph.macs(graph.sizes))


def body(*layers: nn.Module, channels: int = 3, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), *layers, nn.Conv2d(32, classes, 1))


class Calls(nn.Module):
    """Layers by name, and what happens between them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def counted(model: nn.Module, inputs: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    flops: int = counter.get_total_flops()
    return flops // 2 // len(inputs)


# ----------------------------------------------------------------------------------- costs of what freezes


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            Calls(
                lambda net, x: torch.einsum("bchw,cd,de->behw", net.a(x), net.b, net.c),
                a=nn.Conv2d(3, 8, 3),
                b=nn.Parameter(torch.randn(8, 6)),
                c=nn.Parameter(torch.randn(6, 4)),
            ),
            id="einsum of three",
        ),
        pytest.param(
            Calls(
                lambda net, x: torch.stack([p @ p.T for p in net.a(x).flatten(2)]),
                a=nn.Conv2d(3, 8, 3),
            ),
            id="a loop over examples",
        ),
    ],
)
def test_what_freezes_costs_all_the_same(model: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), model).eval()
    graph = trace(model, IMAGES)
    assert int(graph.macs(graph.sizes)) == counted(model, IMAGES)


def test_attention_with_fewer_keys_than_queries_costs_what_it_does() -> None:
    def attend(net: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = net.q(x).view(b, n, 4, 8), net.k(x).view(b, n, 2, 8), net.v(x).view(b, n, 2, 8)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return net.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(32, 32), "k": nn.Linear(32, 16), "v": nn.Linear(32, 16), "o": nn.Linear(32, 5)}
    graph, _ = halved(nn.Sequential(nn.Linear(16, 32), Calls(attend, **layers)), TOKENS)
    linear = 9 * (16 * 32 + 32 * (32 + 16 + 16) + 32 * 5)
    assert int(graph.macs(graph.sizes)) == linear + 2 * 4 * 9 * 9 * 8


# ----------------------------------------------------------------------------------- sizes in the code


class HalfOfThem(nn.Module):
    def __init__(self, half: Callable[[int], int]) -> None:
        super().__init__()
        self.halve, self.conv = half, nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        c = self.halve(x.shape[1])
        return torch.cat([self.conv(x[:, :c]), x[:, c:]], 1)


@pytest.mark.parametrize(
    "half",
    [lambda c: c // 2, lambda c: int(c / 2), lambda c: round(c / 2), lambda c: math.floor(c / 2), lambda c: c >> 1],
    ids=["//", "int", "round", "floor", ">>"],
)
def test_half_of_the_channels_however_it_is_written(half: Callable[[int], int]) -> None:
    graph, _ = halved(body(HalfOfThem(half), nn.Conv2d(32, 32, 3)), IMAGES)
    assert least(graph) < 0.05


def test_a_quotient_that_scales_freezes() -> None:
    graph, _ = halved(body(Calls(lambda net, x: x * (x.shape[1] / 2)), nn.Conv2d(32, 32, 3)), IMAGES)
    assert "their number enters the arithmetic" in {group.frozen for group in graph.frozen}


class NoTracedInt(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(1, dtype=int).to(x)  # type: ignore[call-overload, no-any-return]


def test_code_that_wants_int_itself() -> None:
    assert least(halved(body(NoTracedInt(), nn.Conv2d(32, 32, 3)), IMAGES)[0]) < 0.05


@functools.lru_cache(16)
def recipe(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    b, n, c = shape
    return b, n, heads, c // heads


class Attention(nn.Module):
    """In the ways in which it is written."""

    def __init__(self, way: str, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.way, self.num_heads, self.scale = way, heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.way == "cached":
            q, k, v = (t.reshape(recipe(tuple(t.shape), self.num_heads)) for t in self.qkv(x).chunk(3, -1))
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        else:
            shape = b, n, 3, self.num_heads, c // self.num_heads
            q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "its own scale":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        x = x.transpose(1, 2)
        return self.proj(x.reshape(b, n, c) if self.way == "reshape" else x.flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["reshape", "flatten", "cached", "its own scale"])
def test_attention_in_a_stream(way: str) -> None:
    recipe((*TOKENS.shape[:2], 48), 4)  # as it is where the network has run before
    graph, _ = halved(nn.Sequential(nn.Linear(16, 48), Attention(way), nn.Linear(48, 5)), TOKENS)
    assert least(graph) < 0.01


class Mixed(nn.Module):
    def __init__(self, kind: Callable[[list[int]], Any]) -> None:
        super().__init__()
        self.splits = kind([16, 8, 8])
        self.parts = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, groups=c) for c in (16, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        split = torch.split(x, list(self.splits), 1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, split, strict=True)], 1)


@pytest.mark.parametrize("kind", [tuple, list])
def test_sizes_in_an_attribute_that_is_a_sequence(kind: Callable[[list[int]], Any]) -> None:
    assert least(halved(body(Mixed(kind), nn.Conv2d(32, 32, 3)), IMAGES)[0]) < 0.05


def test_the_shape_of_any_output_of_split() -> None:
    def run(net: Any, x: Tensor) -> Any:
        b, _, h, w = x.shape
        first, second = net.a(x).chunk(2, 1)
        return net.b((second + first).view(b, second.shape[1], h * w).transpose(1, 2)).mean(1)

    graph, _ = halved(Calls(run, a=nn.Conv2d(3, 32, 1), b=nn.Linear(16, 5)), IMAGES)
    assert sizes(graph) == {"a": 16}


# ----------------------------------------------------------------------------------- attention's own scale


def test_the_change_of_scale_goes_into_the_query_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48), Attention("its own scale"), nn.Linear(48, 5)).eval()
    graph = trace(model, TOKENS)
    assert {rescaling.tensor for rescaling in graph.rescalings} == {"1.qkv.weight", "1.qkv.bias"}
    head = next(group for group in graph.groups if group.size == 12)
    smaller = slim(model, graph, {head.name: list(range(3))})
    attention: Any = smaller[1]  # type: ignore[index]
    dense: Any = model[1]
    kept = [12 * h + c for h in range(4) for c in range(3)]
    q, k, _ = attention.qkv.weight.chunk(3)
    dense_q, dense_k, _ = dense.qkv.weight.chunk(3)
    # The stream is heads x channels of a head, too.
    assert torch.allclose(q, dense_q[kept][:, kept] * (3 / 12) ** 0.5)
    assert torch.equal(k, dense_k[kept][:, kept])


@pytest.mark.parametrize("sharing", ["a residual", "two scales"])
def test_a_query_that_something_else_reads_keeps_its_size(sharing: str) -> None:
    def run(net: Any, x: Tensor) -> Any:
        q, k, v = net.q(x), net.k(x), net.v(x)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y + q if sharing == "a residual" else y + F.scaled_dot_product_attention(q, k, v, scale=0.1)
        return net.o(y)

    layers = {name: nn.Linear(32, 32) for name in "qkv"} | {"o": nn.Linear(32, 5)}
    graph, _ = halved(nn.Sequential(nn.Linear(16, 32), Calls(run, **layers)), TOKENS)
    assert not graph.rescalings
    assert any("its scale follows from the size of a head" in str(group.frozen) for group in graph.frozen)


def test_torchs_own_attention() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    graph, _ = halved(nn.Sequential(nn.Linear(16, 64), encoder, nn.Linear(64, 5)), TOKENS)
    assert least(graph) < 0.01


# ----------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"proj_size": 8, "num_layers": 2}],
    ids=["one", "deep", "without bias", "projected"],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers(kind: str, settings: dict[str, Any]) -> None:
    if "proj_size" in settings and kind != "LSTM":
        pytest.skip("of LSTM alone")
    layer = getattr(nn, kind)(24, 32, batch_first=True, **settings)
    size = settings.get("proj_size", 32) * (2 if settings.get("bidirectional") else 1)
    model = Calls(
        lambda net, x: net.o(net.r(net.e(x))[0].mean(1)), e=nn.Linear(16, 24), r=layer, o=nn.Linear(size, 5)
    )
    graph, smaller = halved(model, TOKENS)
    assert least(graph) < 0.02
    assert smaller.get_submodule("r").hidden_size == 16
    assert smaller.get_submodule("r").input_size == 12


def test_a_state_that_is_given_freezes_what_starts_from_it() -> None:
    def run(net: Any, x: Tensor) -> Any:
        return net.o(net.r(net.e(x), torch.ones(1, len(x), 32))[0].mean(1))

    graph, _ = halved(
        Calls(run, e=nn.Linear(16, 24), r=nn.GRU(24, 32, batch_first=True), o=nn.Linear(32, 5)), TOKENS
    )
    assert [group.size for group in graph.groups] == [24]
    assert any("starts from a given state" in str(group.frozen) for group in graph.frozen)
    line = r"% of the dense MACs because of what is frozen: gru in r: starts from a given state; raise the budget$"
    with pytest.raises(BudgetInfeasible, match=line):
        check_budget(graph, 10)


def test_unpooling_at_the_places_of_the_maxima() -> None:
    def run(net: Any, x: Tensor) -> Any:
        x, places = F.max_pool2d(net.a(x), 2, return_indices=True)
        return net.o(F.max_unpool2d(net.b(x), places, [2, 2]))

    layers = {"a": nn.Conv2d(3, 16, 3, padding=1), "b": nn.Conv2d(16, 16, 3, padding=1), "o": nn.Conv2d(16, 4, 1)}
    assert least(halved(Calls(run, **layers), IMAGES)[0]) < 0.05


class Blur(nn.Module):
    """A filter per channel, in a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (line[:, None] * line / 16).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.get_buffer("filter"), stride=2, groups=x.shape[1])


def test_a_filter_in_a_buffer_is_cut_and_counts_for_nothing() -> None:
    model = body(Blur(32))
    graph, smaller = halved(model, IMAGES)
    assert smaller.get_buffer("2.filter").shape[0] == 16
    before = channel_energies(model, graph)
    model.get_buffer("2.filter").mul_(100)
    assert torch.equal(channel_energies(model, graph), before)


def test_masks_in_the_place_of_weights() -> None:
    model = body(nn.Conv2d(32, 32, 3))
    prune.l1_unstructured(model[2], "weight", 0.5)
    assert least(halved(model, IMAGES)[0]) < 0.05


# ----------------------------------------------------------------------------------- ways to run


def test_a_head_that_runs_in_training_alone_is_cut_with_the_rest() -> None:
    def run(net: Any, x: Tensor) -> Any:
        x = F.relu(net.a(x))
        y = net.o(F.relu(net.b(x)).mean((2, 3)))
        return (y, net.aux(x.mean((2, 3)))) if net.training else y

    layers = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 32, 3), "o": nn.Linear(32, 5), "aux": nn.Linear(16, 5)}
    graph, smaller = halved(Calls(run, **layers), IMAGES)
    assert smaller.get_parameter("aux.weight").shape == (5, 8)
    assert int(graph.macs(graph.sizes)) == 14 * 14 * 9 * 3 * 16 + 12 * 12 * 9 * 16 * 32 + 32 * 5  # none of it


def test_a_pass_in_training_mode_that_cannot_be_made_changes_nothing() -> None:
    def run(net: Any, x: Tensor) -> Any:
        if net.training:
            raise ValueError("in training mode, targets must be given")
        return net.o(net.a(x))

    model = Calls(run, a=nn.Conv2d(3, 16, 3), o=nn.Conv2d(16, 5, 1), unread=nn.Linear(3, 3))
    graph = trace(model.eval(), IMAGES)
    assert [group.size for group in graph.groups] == [16]
    assert not model.training


def test_random_numbers_in_eval_mode() -> None:
    def run(net: Any, x: Tensor) -> Any:
        h = F.relu(net.e(x))
        return net.o(F.relu(net.d(net.mean(h) + torch.randn(*x.shape[:-1], 8) * net.log(h).exp())))

    layers = {"e": nn.Linear(16, 48), "mean": nn.Linear(48, 8), "log": nn.Linear(48, 8), "d": nn.Linear(8, 48)}
    model = Calls(run, **layers, o=nn.Linear(48, 5)).eval()
    state = torch.random.get_rng_state()
    trace(model, TOKENS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert least(halved(model, TOKENS)[0]) < 0.2


def test_half_precision_is_verified_at_its_own() -> None:
    block = [layer for _ in range(10) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
    halved(body(*block).half(), IMAGES.half())


def test_weights_keep_their_memory_format() -> None:
    model = body(nn.Conv2d(32, 32, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _, smaller = halved(model, IMAGES)
    kept = [p.is_contiguous(memory_format=torch.channels_last) for p in smaller.parameters() if p.dim() == 4]
    assert all(kept)


class Keeps(nn.Module):
    """A skip connection by a hook that closes over the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Conv2d(48, 5, 1),
        )
        self.saved: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda module, given, output: self.saved.__setitem__("a", output))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        return self.o(torch.cat([self.saved["a"], y], 1))  # type: ignore[no-any-return]


def test_hooks_of_a_copy_are_the_copys_own() -> None:
    model = Keeps()
    _, smaller = halved(model, IMAGES)
    model.saved.clear()
    smaller(IMAGES)
    assert not model.saved


def test_in_place_what_holds_on_to_the_network_sees_the_smaller_one() -> None:
    model = body(nn.Conv2d(32, 32, 3)).eval()
    first = model[0]
    graph = trace(model, IMAGES)
    keep = graph.keep_best(channel_energies(model, graph).double().numpy(), (graph.sizes + 1) // 2)
    expected = slim(model, graph, keep)(IMAGES)
    assert slim(model, graph, keep, inplace=True) is model
    assert first.out_channels == 16
    assert torch.equal(model(IMAGES), expected)


def test_a_compiled_network_is_traced_as_it_is_written() -> None:
    graph = trace(torch.compile(body(nn.Conv2d(32, 32, 3)).eval()), IMAGES)  # type: ignore[arg-type]
    assert least(graph) < 0.05


class Graph(nn.Module):
    def __init__(self, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.o = kind(16, 32), kind(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        logits: Tensor = self.o(self.b(self.a(x, edges).relu(), edges).relu())
        return logits


@pytest.mark.parametrize("kind", ["GCNConv", "GATConv", "SAGEConv"])
def test_graph_networks_prune_their_features(kind: str) -> None:
    convolution = getattr(pytest.importorskip("torch_geometric.nn"), kind)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 16, generator=generator), torch.randint(0, 10, (2, 30), generator=generator)
    model = Graph(convolution).eval()
    graph = trace(model, inputs)
    assert sorted(sizes(graph).values()) == [32, 32]
    energies = channel_energies(model, graph).double().numpy()
    slim(model, graph, graph.keep_best(energies, (graph.sizes + 1) // 2))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "repeat",
    [
        lambda q, b: q.expand(b, -1, -1),
        lambda q, b: q[:, None].expand(-1, b, -1).transpose(0, 1),
        lambda q, b: q.repeat(b, 1).view(b, 3, -1),
        lambda q, b: torch.zeros(b, 1, 1) + q,
    ],
    ids=["expand", "sequence first", "repeat", "zeros"],
)
def test_costs_of_an_example_do_not_follow_how_many_there_are(repeat: Callable[..., Tensor], batch: int) -> None:
    def run(net: Any, x: Tensor) -> Any:
        return net.o(net.a(repeat(net.q, x.shape[0])))

    model = Calls(run, q=nn.Parameter(torch.randn(3, 8)), a=nn.Linear(8, 16), o=nn.Linear(16, 4)).eval()
    graph = trace(model, torch.randn(batch, 5))
    assert int(graph.macs(graph.sizes)) == 3 * (8 * 16 + 16 * 4)


def test_a_scripted_part_is_traced_through_and_no_hook_stays() -> None:
    part = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), part, nn.Conv2d(8, 2, 1)).eval()
    assert sum(sizes(trace(model, IMAGES)).values()) == 16
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_the_code_notes_on_the_network_is_gone_afterwards() -> None:
    def run(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        net.width, net.seen["shape"] = x.shape[1], x.shape
        net.cache = torch.zeros(x.shape[1]) if net.cache is None else net.cache
        return net.o(x + net.cache[:, None, None])

    model = Calls(run, a=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 4, 1), seen={}, cache=None).eval()
    graph, _ = halved(model, IMAGES)
    assert sizes(graph) == {"a": 16}
    assert not hasattr(model, "width") and model.cache is None
    assert not model.seen


def test_energies_of_weights_with_three_dimensions() -> None:
    def run(net: Any, x: Tensor) -> Any:
        return net.o(torch.einsum("bnd,dhe->bhne", net.i(x), net.w).sum(1))

    layers = {"i": nn.Linear(16, 12), "o": nn.Linear(8, 4)}
    halved(Calls(run, w=nn.Parameter(torch.randn(12, 3, 8)), **layers), TOKENS)


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        (lambda x: x.shape[0], False),
        (lambda x: x.shape[:1][0], False),
        (lambda x: len(x), False),
        (lambda x: x.shape[1], True),
        (lambda x: x.size()[-3:][0], True),
        (lambda x: max(x.shape), True),
    ],
)
def test_which_sizes_the_code_goes_on_to_use(read: Callable[[Tensor], Any], seen: bool) -> None:
    def run(net: Any, x: Tensor) -> Any:
        net.read = [0] * read(x := net.a(x))
        return net.o(x)

    model = Calls(run, a=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 4, 1)).eval()
    run_of = LabelRun(record(model, IMAGES))
    kept = "compared" in " ".join(run_of.store.reasons()[1])  # as `max` does, so that they stay as they are
    assert (run_of.code_sees_widths() or kept) == seen


def test_a_size_put_into_a_variable_that_nothing_reads_is_not_used() -> None:
    def unread(net: Any, x: Tensor) -> Any:
        batch, _channels, *_ = (x := net.a(x)).shape
        batch, _, height, width = x.shape
        return net.o(x.view(batch, -1, height, width))

    def read(net: Any, x: Tensor) -> Any:
        _, channels, _, _ = (x := net.a(x)).shape
        return net.o(x) * sum(1 for _ in range(channels))

    def run(net: Any, x: Tensor) -> Any:
        batch, _, height, width = (x := net.a(x)).shape
        return net.o(x.view(batch, -1, height, width))

    layers = {"a": nn.Conv2d(3, 16, 1), "o": nn.Conv2d(16, 4, 1)}
    for body, seen in ((unread, True), (read, True), (run, False)):  # of *_, all may be
        assert LabelRun(record(Calls(body, **layers).eval(), IMAGES)).code_sees_widths() == seen


def test_activations_are_not_kept_while_a_network_is_recorded() -> None:
    alive: list[bool] = []

    def run(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        storage = StorageWeakRef(x.untyped_storage())
        x = net.b(x)
        alive.append(not storage.expired())
        return net.o(x)

    layers = {"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(16, 16, 1), "o": nn.Conv2d(16, 4, 1)}
    assert sizes(trace(Calls(run, **layers).eval(), IMAGES)) == {"a": 16, "b": 16}
    assert alive == [False]


def test_a_cache_that_forward_fills_is_empty_again_and_holds_no_dense_tensor() -> None:
    def run(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        if "scale" not in net.cache:
            net.cache["scale"] = net.scale[net.order]
        return net.o(x * net.cache["scale"][:, None, None])

    parts: dict[str, Any] = {"scale": nn.Parameter(torch.rand(16)), "order": slice(None), "cache": {}}
    model = Calls(run, a=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 4, 1), **parts).eval()
    graph, smaller = halved(model, IMAGES)
    assert sizes(graph) == {"a": 16}
    caches: list[Any] = [model.cache, smaller.cache]
    assert not caches[0] and caches[1]["scale"].shape == (8,)  # it has run on its own since


def test_a_layer_per_expert() -> None:
    """Rows of a batch go to one of several matrices each; torch multiplies rows of 16 bytes."""

    def run(net: Any, x: Tensor) -> Any:
        ends = torch.tensor([5, 9, 18], dtype=torch.int32)
        x = F.relu(torch._grouped_mm(net.i(x), net.up.transpose(-2, -1), offs=ends))
        return net.o(torch._grouped_mm(x, net.down.transpose(-2, -1), offs=ends))

    parts = {"up": nn.Parameter(torch.randn(3, 16, 8)), "down": nn.Parameter(torch.randn(3, 24, 16))}
    layers = {"i": nn.Linear(16, 8), "o": nn.Linear(24, 4)}
    graph, smaller = halved(Calls(run, **layers, **parts), TOKENS.flatten(0, 1))
    assert sizes(graph) == {"i": 8, "up": 16, "down": 24}
    assert smaller.down.shape == (3, 12, 8)
    assert int(graph.macs(graph.sizes)) == 16 * 8 + 8 * 16 + 16 * 24 + 24 * 4


def test_which_reason_keeps_how_many_macs() -> None:
    def run(net: Any, x: Tensor) -> Any:
        fixed = net.b(net.a(x)) + torch.arange(16)
        return net.o(net.d(net.c(fixed)))

    widths = {"a": (16, 32), "b": (32, 16), "c": (16, 24), "d": (24, 48), "o": (48, 10)}
    layers = {name: nn.Linear(*width) for name, width in widths.items()}
    graph = trace(Calls(run, **layers).eval(), TOKENS[:1])
    assert sizes(graph) == {"a": 32, "c": 24, "d": 48}
    added = next(group.frozen for group in graph.frozen if group.name == "b")
    assert list(graph.macs_kept_by_reason().items()) == [(added, 9 * (16 + 16)), ("network output", 9 * 10)]


def replayed(model: nn.Module, graph: ChannelGraph, inputs: Tensor) -> Tensor:
    """What the recorded calls of a network give, all channels kept."""
    keep = torch.ones(graph.n_channels, dtype=torch.bool)
    (output,) = list(reference_of(model, graph).run(model, keep, inputs))[-1][1]
    found: Tensor = output
    return found


@pytest.mark.parametrize("out", [0, 1])
def test_vmap_freezes_what_it_maps(out: int) -> None:
    def run(net: Any, x: Tensor) -> Any:
        mapped = torch.func.vmap(lambda row: row.sin() + net.inner(row), out_dims=out)(F.relu(net.b(net.a(x))))
        return net.o(net.c(mapped.movedim(out, 0)))

    parts = {"a": (16, 12), "b": (12, 10), "inner": (10, 10), "c": (10, 6), "o": (6, 4)}
    model = Calls(run, **{name: nn.Linear(*width) for name, width in parts.items()})
    graph, _ = halved(model, TOKENS)
    assert sizes(graph) == {"a": 12, "c": 6}
    assert int(graph.macs(graph.sizes)) == 9 * sum(a * b for a, b in parts.values())
    torch.testing.assert_close(replayed(model, graph, TOKENS + 1), model(TOKENS + 1))


def test_vmap_inside_of_vmap_as_masks_of_attention_are_made() -> None:
    def run(net: Any, x: Tensor) -> Any:
        places = torch.arange(x.shape[1])

        def seen(row: Tensor, column: Tensor) -> Tensor:
            finite: Tensor = net.norm(net.i(x).mean((0, 1))).isfinite().all()
            return (column <= row) & finite

        mask = torch.func.vmap(torch.func.vmap(seen, (None, 0)), (0, None))(places, places)
        return net.o(F.softmax((net.a(x) @ net.a(x).mT).masked_fill(~mask, -1e9), -1) @ net.a(x))

    layers = {"a": nn.Linear(16, 12), "i": nn.Linear(16, 8), "norm": nn.LayerNorm(8), "o": nn.Linear(12, 4)}
    model = Calls(run, **layers)
    graph = trace(model.eval(), TOKENS)
    assert sizes(graph) == {"a": 12, "i": 8}
    torch.testing.assert_close(replayed(model, graph, TOKENS - 1), model(TOKENS - 1))
    energies = channel_energies(model, graph).double().numpy()
    smaller: Any = slim(model, graph, graph.keep_best(energies, graph.sizes - [2, 6]))
    assert smaller.o.weight.shape == (4, 6)


def test_a_layer_returns_something_else_than_what_it_computed_last() -> None:
    class Scan(nn.Module):
        """A linear recurrence that keeps its last state beside what it returns."""

        state: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            states, state = torch.zeros_like(x), torch.zeros_like(x[:, 0])
            for place in range(x.shape[1]):
                state = 0.5 * state + x[:, place]
                states[:, place] = state
            self.state = state.float()
            return states

    def run(net: Any, x: Tensor) -> Any:
        return net.o(net.scan(net.a(x)))

    graph, _ = halved(Calls(run, a=nn.Linear(16, 12), scan=Scan(), o=nn.Linear(12, 4)), TOKENS)
    assert sizes(graph) == {"a": 12}
