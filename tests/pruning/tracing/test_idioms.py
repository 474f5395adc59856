"""Small networks written as people write them: each idiom with the groups it should have, reasoned out by hand.

Every network is slimmed by ten random policies; `slim` compares each with the masked network layer by layer. Its
outputs must keep their shapes, its parameters and MACs must be those of the closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espalier.pruning.graph.inputs import Inputs, arguments
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace
from espalier.pruning.tracing.running import call


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


IMAGES, TOKENS, SIGNALS = drawn(2, 3, 16, 16), drawn(2, 6, 12), drawn(2, 3, 20)
WORDS = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers, parameters, buffers and integers by name, and what happens between them."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, *args, **kwargs)


@dataclass
class Idiom:
    """A network and what must be found in it.

    Attributes:
        net: the network.
        groups: name -> size.
        frozen: name -> how the reason begins; what the network puts out is left away.
        inputs: the example.
        countable: whether torch's counter knows all of its products, and multiplies as they are written.
    """

    net: nn.Module
    groups: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=lambda: IMAGES)
    countable: bool = True


MEETS_FIXED = "add: meets channels that are fixed"


def conv(inputs: int, outputs: int, kernel: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **kwargs)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(drawn(*shape))


# --------------------------------------------------------------------------------------- vision transformers


class PlainAttention(nn.Module):
    """As in the first ViTs: the width of a head is computed from the width of the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1)
        x = (attention @ v).transpose(1, 2).reshape(B, N, C)
        out: Tensor = self.proj(x)
        return out


class TimmAttention(nn.Module):
    """The width of a head is an attribute; queries and keys are normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, scale=self.scale)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, self.attn_dim))
        return out


class TorchAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Block(nn.Module):
    """Attention and an MLP under layer norm, the MLP with a layer scale."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.fc1, self.fc2, self.gamma = nn.Linear(width, 20), nn.Linear(20, width), parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


def vit(attention: Callable[[int, int], nn.Module]) -> nn.Module:
    def body(net: Any, x: Tensor) -> Any:
        x = net.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((net.token.expand(x.shape[0], -1, -1), x), 1) + net.position
        return net.head(net.norm(net.blocks(x))[:, 0])

    return Net(
        body,
        patch=nn.Conv2d(3, 24, 8, 8),
        token=parameter(1, 1, 24),
        position=parameter(1, 5, 24),
        blocks=nn.Sequential(*(Block(24, attention(24, 4)) for _ in range(2))),
        norm=nn.LayerNorm(24),
        head=nn.Linear(24, 5),
    )


def vit_with_heads_from_the_stream() -> Idiom:
    """heads x (C // heads) = C is written for every block: the stream itself is 4 heads of 6 channels."""
    return Idiom(vit(PlainAttention), {"patch": 4, "patch#2": 6, "blocks.0.fc1": 20, "blocks.1.fc1": 20})


def vit_with_heads_of_their_own() -> Idiom:
    """Each block has its own heads and channels of a head, shared by queries, keys and values."""
    blocks: dict[str, int] = {}
    for block in ("blocks.0", "blocks.1"):
        blocks |= {f"{block}.attention.qkv": 4, f"{block}.attention.qkv#2": 6, f"{block}.fc1": 20}
    return Idiom(vit(TimmAttention), {"patch": 24} | blocks)


def vit_of_torch() -> Idiom:
    """The stream of `nn.MultiheadAttention` is heads times channels of a head; its scale goes into the query."""
    return Idiom(
        vit(TorchAttention),
        {"patch": 4, "patch#2": 6, "blocks.0.fc1": 20, "blocks.1.fc1": 20},
        countable=False,  # it runs as one operation
    )


def swin_windows() -> Idiom:
    """Windows cut and shifted over positions; four neighbours' channels merge into one wider stream."""

    def partition(x: Tensor, side: int) -> Tensor:
        B, H, W, C = x.shape
        x = x.view(B, H // side, side, W // side, side, C)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side, side, C)

    def reverse(windows: Tensor, side: int, H: int, W: int) -> Tensor:
        B = int(windows.shape[0] / (H * W / side / side))
        x = windows.view(B, H // side, W // side, side, side, -1)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)

    def body(net: Any, x: Tensor) -> Any:
        x = net.patch(x).flatten(2).transpose(1, 2)
        B, _, C = x.shape
        H = W = 8
        y = torch.roll(net.norm(x).view(B, H, W, C), (-2, -2), (1, 2))
        y = net.attention(partition(y, 4).view(-1, 16, C)).view(-1, 4, 4, C)
        x = x + torch.roll(reverse(y, 4, H, W), (2, 2), (1, 2)).view(B, H * W, C)
        x = x.view(B, H, W, C)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = net.reduction(net.merged(x.view(B, -1, 4 * C)))
        return net.head((x + net.fc2(F.gelu(net.fc1(x)))).mean(1))

    net = Net(
        body,
        patch=nn.Conv2d(3, 24, 2, 2),
        norm=nn.LayerNorm(24),
        attention=PlainAttention(24, 4),
        merged=nn.LayerNorm(96),
        reduction=nn.Linear(96, 48, bias=False),
        fc1=nn.Linear(48, 40),
        fc2=nn.Linear(40, 48),
        head=nn.Linear(48, 5),
    )
    return Idiom(net, {"patch": 4, "patch#2": 6, "reduction": 48, "fc1": 40})


def swin_relative_positions() -> Idiom:
    """A table of biases has a column per head."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.patch(x).flatten(2).transpose(1, 2)
        B, N, _ = x.shape
        q, k, v = (layer(x).view(B, N, net.heads, net.head_dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        bias = net.table[net.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous()
        scores = q @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return net.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))

    place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    apart = (place[:, :, None] - place[:, None]) + 3
    net = Net(
        body,
        patch=nn.Conv2d(3, 10, 4, 4),
        **{name: nn.Linear(10, 12) for name in "qkv"},
        heads=4,
        head_dim=3,
        table=parameter(49, 4),
        index=apart[0] * 7 + apart[1],
        head=nn.Linear(12, 5),
    )
    return Idiom(net, {"patch": 10, "q": 4, "q#2": 3})


def coatnet_relative_positions() -> Idiom:
    """A row of the table per head, gathered along its positions."""

    def body(net: Any, x: Tensor) -> Any:
        B, _, H, W = x.shape
        x = net.stem(x)
        q, k, v = (layer(x).view(B, net.heads, net.head_dim, -1) for layer in (net.q, net.k, net.v))
        scores = q.transpose(-2, -1) @ k + net.table[:, net.index]
        out = v @ scores.softmax(-1).transpose(-2, -1)
        return net.head(pooled(net.o(out.reshape(B, -1, H, W)) + x))

    net = Net(
        body,
        stem=conv(3, 10),
        **{name: nn.Conv2d(10, 12, 1) for name in "qkv"},
        o=nn.Conv2d(12, 10, 1),
        heads=4,
        head_dim=3,
        table=parameter(4, 31),
        index=torch.arange(16)[:, None] - torch.arange(16)[None] + 15,
        head=nn.Linear(10, 5),
    )
    return Idiom(net, {"stem": 10, "q": 4, "q#2": 3}, inputs=drawn(2, 3, 4, 4))


def maxvit_grid() -> Idiom:
    """Attention among the same places of all cells of a grid."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        g = 4
        y = x.view(B, g, H // g, g, W // g, C).permute(0, 2, 4, 1, 3, 5).reshape(-1, g * g, C)
        y = net.attention(y).view(B, H // g, W // g, g, g, C).permute(0, 3, 1, 4, 2, 5).reshape(B, H, W, C)
        return net.head((x + y).mean((1, 2)))

    net = Net(body, stem=conv(3, 12), attention=TimmAttention(12, 3), head=nn.Linear(12, 5))
    return Idiom(net, {"stem": 12, "attention.qkv": 3, "attention.qkv#2": 4})


def efficientvit_linear_attention() -> Idiom:
    """ReLU attention without a softmax; heads of 3 x 4 channels, a row of ones for the sums."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        B, _, H, W = x.shape
        qkv = net.qkv(x).reshape(B, -1, 3 * net.dim, H * W)
        q, k, v = (
            qkv[:, :, : net.dim].relu(),
            qkv[:, :, net.dim : 2 * net.dim].relu(),
            qkv[:, :, 2 * net.dim :],
        )
        v = F.pad(v, (0, 0, 0, 1), mode="constant", value=1)
        out = (v @ k.transpose(-1, -2)) @ q
        out = out[:, :, :-1] / (out[:, :, -1:] + 1e-3)
        return net.head(pooled(x + net.proj(out.reshape(B, -1, H, W))))

    net = Net(
        body, stem=conv(3, 10), qkv=nn.Conv2d(10, 24, 1), dim=4, proj=nn.Conv2d(8, 10, 1), head=nn.Linear(10, 5)
    )
    return Idiom(net, {"stem": 10, "qkv": 2, "qkv#2": 4})


def cross_covariance_attention() -> Idiom:
    """XCiT: attention among the channels of a head, which the stream is made of, with a temperature per head."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.patch(x).flatten(2).transpose(1, 2)
        B, N, C = x.shape
        qkv = net.qkv(x).reshape(B, N, 3, net.heads, C // net.heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * net.temperature
        return net.head(net.proj((scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(B, N, C)).mean(1))

    net = Net(
        body,
        patch=nn.Conv2d(3, 12, 4, 4),
        qkv=nn.Linear(12, 36),
        temperature=parameter(3, 1, 1),
        heads=3,
        proj=nn.Linear(12, 10),
        head=nn.Linear(10, 5),
    )
    return Idiom(net, {"patch": 3, "patch#2": 4, "proj": 10})


# ---------------------------------------------------------------------------------------- other transformers


def projections(width: int, heads: int, head_dim: int) -> dict[str, Any]:
    inner = heads * head_dim
    layers: dict[str, Any] = {name: nn.Linear(width, inner) for name in "qkv"}
    return layers | {"o": nn.Linear(inner, width), "heads": heads, "head_dim": head_dim}


def rotary_halves() -> Idiom:
    """Channel i of a head is turned with channel i + 4: pairs come and go."""

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-second, first), -1)

    def body(net: Any, x: Tensor) -> Any:
        B, N, _ = x.shape
        q, k, v = (layer(x).view(B, N, net.heads, net.head_dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        q, k = q * net.cos + turned(q) * net.sin, k * net.cos + turned(k) * net.sin
        x = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).reshape(B, N, -1)
        return net.head(net.o(x).mean(1))

    tables = {"cos": drawn(6, 8), "sin": drawn(6, 8), "head": nn.Linear(12, 5)}
    net = Net(body, **projections(12, 3, 8), **tables)
    return Idiom(net, {"q": 3, "q#2": 4, "o": 12}, inputs=TOKENS)


def rotary_neighbours() -> Idiom:
    """Channel 2 i of a head is turned with its neighbour."""

    def turned(x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)

    def body(net: Any, x: Tensor) -> Any:
        B, N, _ = x.shape
        q, k, v = (layer(x).view(B, N, net.heads, net.head_dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
        q, k = q * net.cos + turned(q) * net.sin, k * net.cos + turned(k) * net.sin
        x = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).reshape(B, N, -1)
        return net.head(net.o(x).mean(1))

    net = Net(body, **projections(12, 3, 8), cos=drawn(6, 8), sin=drawn(6, 8), head=nn.Linear(12, 5))
    return Idiom(net, {"q": 3, "q#2": 4, "o": 12}, inputs=TOKENS)


def grouped_queries() -> Idiom:
    """Two heads of queries for each head of keys and values: they come and go together."""

    def repeated(net: Any, x: Tensor) -> Tensor:
        B, heads, N, D = x.shape
        times = net.heads // net.kv_heads
        return x[:, :, None].expand(B, heads, times, N, D).reshape(B, heads * times, N, D)

    def body(net: Any, x: Tensor) -> Any:
        B, N, _ = x.shape
        q = net.q(x).view(B, N, net.heads, net.head_dim).transpose(1, 2)
        k, v = (layer(x).view(B, N, net.kv_heads, net.head_dim).transpose(1, 2) for layer in (net.k, net.v))
        x = F.scaled_dot_product_attention(q, repeated(net, k), repeated(net, v), scale=0.3)
        return net.head(net.o(x.transpose(1, 2).reshape(B, N, -1)).mean(1))

    net = Net(
        body,
        q=nn.Linear(12, 20),
        k=nn.Linear(12, 10),
        v=nn.Linear(12, 10),
        o=nn.Linear(20, 8),
        heads=4,
        kv_heads=2,
        head_dim=5,
        head=nn.Linear(8, 5),
    )
    return Idiom(net, {"q": 2, "q#2": 5, "o": 8}, inputs=TOKENS)


def tied_language_model() -> Idiom:
    """The head reads the columns that the embedding writes; its words are what the network puts out."""

    def body(net: Any, words: Tensor) -> Any:
        x = net.norm(net.words(words) + net.places(torch.arange(words.shape[1])))
        return net.head(x + net.fc2(F.gelu(net.fc1(x))))

    net = Net(
        body,
        words=nn.Embedding(11, 16),
        places=nn.Embedding(8, 16),
        norm=nn.LayerNorm(16),
        fc1=nn.Linear(16, 24),
        fc2=nn.Linear(24, 16),
        head=nn.Linear(16, 11),
    )
    net.get_submodule("head").weight = net.get_parameter("words.weight")
    return Idiom(net, {"words": 16, "fc1": 24}, inputs=WORDS)


def shared_blocks() -> Idiom:
    """ALBERT runs one block three times: its weights are counted once, its products thrice."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        for _ in range(3):
            x = net.block(x)
        return net.head(x.mean(1))

    net = Net(body, stem=nn.Linear(12, 10), block=Block(10, TimmAttention(10, 2)), head=nn.Linear(10, 5))
    groups = {"stem": 10, "block.attention.qkv": 2, "block.attention.qkv#2": 5, "block.fc1": 20}
    return Idiom(net, groups, inputs=TOKENS)


def torch_encoder() -> Idiom:
    """`nn.TransformerEncoder` adds to what it was given: only what its MLPs hold inside may change."""

    def body(net: Any, x: Tensor) -> Any:
        return net.head(net.encoder(x).mean(1))

    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    net = Net(body, encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), head=nn.Linear(12, 5))
    groups = {"encoder.layers.0.linear1": 20, "encoder.layers.1.linear1": 20}
    width = "unflatten in encoder.layers.0.self_attn: its size is written as a constant"
    stream = "add in encoder.layers.0: meets channels that are fixed"
    frozen = {"encoder.layers.0.self_attn": width, "encoder.layers.0.self_attn.out_proj": stream}
    return Idiom(net, groups, frozen, TOKENS, countable=False)


def cross_attention_of_torch() -> Idiom:
    """Learned queries look at a map: `nn.MultiheadAttention` keeps all widths but that of its result."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x).relu()).flatten(2).transpose(1, 2)
        queries = net.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        return net.head(net.inner(queries, x, x)[0])

    net = Net(
        body,
        a=conv(3, 8),
        b=conv(8, 12),
        queries=nn.Embedding(5, 12),
        inner=nn.MultiheadAttention(12, 3, batch_first=True),
        head=nn.Linear(12, 5),
    )
    frozen = {"b": "no layer writes it"}
    return Idiom(net, {"a": 8, "inner.out_proj": 12}, frozen, countable=False)


def learned_queries() -> Idiom:
    """As in DETR, with attention by hand: the queries' channels are those that the projection reads."""

    def body(net: Any, x: Tensor) -> Any:
        memory = net.stem(x).flatten(2).transpose(1, 2)
        queries = net.queries.weight.unsqueeze(0).expand(x.shape[0], -1, -1)
        scores = (net.q(queries) @ net.k(memory).transpose(1, 2)) * 0.2
        queries = queries + net.o(scores.softmax(-1) @ net.v(memory))
        return net.classes(queries), net.boxes(queries).sigmoid()

    net = Net(
        body,
        stem=conv(3, 10),
        queries=nn.Embedding(5, 12),
        q=nn.Linear(12, 8),
        k=nn.Linear(10, 8),
        v=nn.Linear(10, 6),
        o=nn.Linear(6, 12),
        classes=nn.Linear(12, 3),
        boxes=nn.Linear(12, 4),
    )
    return Idiom(net, {"stem": 10, "queries": 12, "q": 8, "v": 6})


def modulated_by_a_condition() -> Idiom:
    """DiT: shift, scale and gate are thirds of one layer, each as wide as the stream."""

    def body(net: Any, x: Tensor, t: Tensor) -> Any:
        half = 4
        angles = t[:, None] * torch.exp(-math.log(100) * torch.arange(half) / half)
        t = net.t2(F.silu(net.t1(torch.cat([angles.cos(), angles.sin()], -1))))
        x = net.stem(x)
        shift, scale, gate = net.modulation(F.silu(t)).chunk(3, dim=1)
        y = F.layer_norm(x, (net.width,)) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        return net.head(x + gate.unsqueeze(1) * net.fc2(F.gelu(net.fc1(y))))

    net = Net(
        body,
        t1=nn.Linear(8, 9),
        t2=nn.Linear(9, 7),
        stem=nn.Linear(12, 10),
        modulation=nn.Linear(7, 30),
        width=10,
        fc1=nn.Linear(10, 14),
        fc2=nn.Linear(14, 10),
        head=nn.Linear(10, 5),
    )
    return Idiom(net, {"t1": 9, "t2": 7, "stem": 10, "fc1": 14}, inputs=(TOKENS, torch.tensor([0.2, 0.7])))


# ------------------------------------------------------------------------------------------------------ mlps


def mixer() -> Idiom:
    """What mixes tokens has hidden channels, and writes tokens, which are no channels."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.patch(x).flatten(2).transpose(1, 2)
        x = x + net.tokens2(F.gelu(net.tokens1(net.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return net.head((x + net.fc2(F.gelu(net.fc1(net.norm2(x))))).mean(1))

    net = Net(
        body,
        patch=nn.Conv2d(3, 12, 4, 4),
        norm1=nn.LayerNorm(12),
        tokens1=nn.Linear(16, 9),
        tokens2=nn.Linear(9, 16),
        norm2=nn.LayerNorm(12),
        fc1=nn.Linear(12, 20),
        fc2=nn.Linear(20, 12),
        head=nn.Linear(12, 5),
    )
    return Idiom(net, {"patch": 12, "tokens1": 9, "fc1": 20}, {"tokens2": MEETS_FIXED})


def gated_mlp() -> Idiom:
    """gMLP: one half gates the other, so that both keep the same places."""

    def body(net: Any, x: Tensor) -> Any:
        u, v = net.fc1(net.stem(x)).chunk(2, -1)
        v = net.tokens(net.norm(v).transpose(-1, -2)).transpose(-1, -2)
        return net.head(net.fc2(u * v).mean(1))

    net = Net(
        body,
        stem=nn.Linear(12, 10),
        fc1=nn.Linear(10, 16),
        norm=nn.LayerNorm(8),
        tokens=nn.Linear(6, 6),
        fc2=nn.Linear(8, 9),
        head=nn.Linear(9, 5),
    )
    return Idiom(net, {"stem": 10, "fc1": 8, "fc2": 9}, {"tokens": "mul: meets channels that are fixed"}, TOKENS)


def swiglu() -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        return net.head(x + net.down(F.silu(net.gate(x)) * net.up(x)))

    layers = {"gate": nn.Linear(10, 16), "up": nn.Linear(10, 16), "down": nn.Linear(16, 10)}
    net = Net(body, stem=nn.Linear(12, 10), **layers, head=nn.Linear(10, 5))
    return Idiom(net, {"stem": 10, "gate": 16}, inputs=TOKENS)


def soft_mixture_of_experts() -> Idiom:
    """Experts write the same channels; a gate counts the experts, which are as many as the code holds."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        weights = net.gate(x).softmax(-1)
        return net.head((torch.stack([e(x) for e in net.experts], -1) * weights.unsqueeze(-2)).sum(-1))

    experts = nn.ModuleList(nn.Sequential(nn.Linear(10, n), nn.ReLU(), nn.Linear(n, 8)) for n in (6, 7))
    net = Net(body, stem=nn.Linear(12, 10), gate=nn.Linear(10, 2), experts=experts, head=nn.Linear(8, 5))
    groups = {"stem": 10, "experts.0.0": 6, "experts.0.2": 8, "experts.1.0": 7}
    return Idiom(net, groups, {"gate": "mul: meets channels that are fixed"}, TOKENS)


# ---------------------------------------------------------------------------------------- channels and places


def squeeze_and_excite_by_views() -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        b, c, _, _ = x.size()
        y = net.pool(x).view(b, c)
        return net.head(pooled(x * net.gate(y).view(b, c, 1, 1)))

    gate = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8), nn.Sigmoid())
    net = Net(body, a=conv(3, 8), pool=nn.AdaptiveAvgPool2d(1), gate=gate, head=nn.Linear(8, 5))
    return Idiom(net, {"a": 8, "gate.0": 3})


def cbam() -> Idiom:
    """A gate per channel, then one per place, of the mean and the maximum over channels."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        b, c, _, _ = x.size()
        pools = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        y = sum(net.expand(F.relu(net.squeeze(pool.view(b, c)))) for pool in pools)
        x = x * torch.sigmoid(y).view(b, c, 1, 1).expand_as(x)
        places = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], 1)
        return net.head(pooled(net.b(x * torch.sigmoid(net.place(places)))))

    net = Net(
        body,
        a=conv(3, 8),
        squeeze=nn.Linear(8, 3),
        expand=nn.Linear(3, 8),
        place=conv(2, 1, 7),
        b=conv(8, 6),
        head=nn.Linear(6, 5),
    )
    return Idiom(net, {"a": 8, "squeeze": 3, "b": 6}, {"place": "mul: is broadcast over channels"})


def efficient_channel_attention() -> Idiom:
    """ECA convolves along channels: their places matter."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x))
        y = net.along(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return net.head(pooled(x * y.sigmoid().expand_as(x)))

    along = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    net = Net(body, a=conv(3, 8), b=conv(8, 6), along=along, head=nn.Linear(6, 5))
    frozen = {"b": "conv1d in along: works along dimension 2 of its channels", "along": "transpose: picks one"}
    return Idiom(net, {"a": 8}, frozen)


def selective_kernel() -> Idiom:
    """Two branches, mixed channel by channel with weights that sum to one."""

    def body(net: Any, x: Tensor) -> Any:
        branches = torch.stack([net.a(x), net.b(x)], 1)
        z = net.squeeze(pooled(branches.sum(1)))
        weights = torch.stack([expand(z) for expand in net.expand], 1).softmax(1)
        return net.head(pooled((branches * weights[..., None, None]).sum(1)))

    expand = nn.ModuleList([nn.Linear(3, 8), nn.Linear(3, 8)])
    net = Net(body, a=conv(3, 8), b=conv(3, 8, 5), squeeze=nn.Linear(8, 3), expand=expand, head=nn.Linear(8, 5))
    return Idiom(net, {"a": 8, "squeeze": 3})


def non_local() -> Idiom:
    """All three projections are viewed by one attribute: they keep the same channels."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        b = x.size(0)
        g = net.g(x).view(b, net.inner, -1).permute(0, 2, 1)
        theta = net.theta(x).view(b, net.inner, -1).permute(0, 2, 1)
        scores = torch.matmul(theta, net.phi(x).view(b, net.inner, -1))
        y = torch.matmul(scores / scores.size(-1), g).permute(0, 2, 1).contiguous()
        return net.head(pooled(net.w(y.view(b, net.inner, *x.size()[2:])) + x))

    inner = {name: nn.Conv2d(8, 5, 1) for name in ("g", "theta", "phi")}
    net = Net(body, a=conv(3, 8), **inner, w=nn.Conv2d(5, 8, 1), inner=5, head=nn.Linear(8, 5))
    return Idiom(net, {"a": 8, "g": 5})


def attention_gate() -> Idiom:
    """Attention U-Net: what the decoder knows opens places of the skip connection."""

    def body(net: Any, x: Tensor) -> Any:
        skip = net.a(x)
        up = F.interpolate(net.b(F.max_pool2d(skip, 2)), scale_factor=2, mode="bilinear")
        gate = torch.sigmoid(net.psi(F.relu(net.from_up(up) + net.from_skip(skip))))
        return net.out(torch.cat([skip * gate, up], 1))

    projections = {"from_up": nn.Conv2d(6, 4, 1), "from_skip": nn.Conv2d(8, 4, 1), "psi": nn.Conv2d(4, 1, 1)}
    net = Net(body, a=conv(3, 8), b=conv(8, 6), **projections, out=nn.Conv2d(14, 2, 1))
    return Idiom(net, {"a": 8, "b": 6, "from_up": 4}, {"psi": "mul: is broadcast over channels"})


def involution() -> Idiom:
    """Kernels made of the map, shared by the channels of a group; groups and their channels come and go."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        b, c, h, w = x.shape
        kernels = net.span(net.reduce(x)).view(b, net.groups, 9, h, w).unsqueeze(2)
        patches = F.unfold(x, 3, padding=1).view(b, net.groups, c // net.groups, 9, h, w)
        return net.head(pooled((kernels * patches).sum(3).view(b, c, h, w)))

    net = Net(
        body, a=conv(3, 12), reduce=nn.Conv2d(12, 5, 1), span=nn.Conv2d(5, 36, 1), groups=4, head=nn.Linear(12, 5)
    )
    return Idiom(net, {"reduce": 5, "a": 4, "a#2": 3})


def mixed_kernels() -> Idiom:
    """CondConv: kernels of constant sizes, mixed per image, in a convolution with a group per image."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x))
        b, c, h, w = x.shape
        kernels = torch.mm(net.route(pooled(x)).softmax(1), net.kernels.view(4, -1)).view(b * 6, 8, 3, 3)
        out = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b)
        return net.head(pooled(out.view(b, 6, h, w)))

    net = Net(
        body,
        a=conv(3, 7),
        b=conv(7, 8),
        route=nn.Linear(8, 4),
        kernels=parameter(4, 6, 8, 3, 3),
        head=nn.Linear(6, 5),
    )
    frozen = {"b": "conv2d: a weight that is computed", "route": "view: its size is written as a constant"}
    return Idiom(net, {"a": 7}, frozen)


def deformed_sampling() -> Idiom:
    """Two channels of offsets are the coordinates of a grid."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        offsets = net.offsets(x).permute(0, 2, 3, 1).tanh()
        return net.head(pooled(net.b(F.grid_sample(x, net.grid + 0.1 * offsets, align_corners=False))))

    side = torch.linspace(-1, 1, 16)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)[None]
    net = Net(body, a=conv(3, 8), offsets=conv(8, 2), grid=grid, b=conv(8, 6), head=nn.Linear(6, 5))
    return Idiom(net, {"a": 8, "b": 6}, {"offsets": "grid_sampler"})


# ----------------------------------------------------------------------------------------- convolutional nets


def inception() -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        branches = [net.one(x), net.three(F.relu(net.before(x))), net.pool(F.max_pool2d(x, 3, 1, 1))]
        return net.head(pooled(torch.cat(branches, 1)))

    net = Net(
        body,
        stem=conv(3, 8),
        one=conv(8, 4, 1),
        before=conv(8, 3, 1),
        three=conv(3, 6),
        pool=conv(8, 2, 1),
        head=nn.Linear(12, 5),
    )
    return Idiom(net, {"stem": 8, "one": 4, "before": 3, "three": 6, "pool": 2})


def unet() -> Idiom:
    """Skip connections keep both sides' channels apart; four groups of a norm keep the same places."""

    def body(net: Any, x: Tensor) -> Any:
        a = F.relu(net.a(x))
        up = net.up(net.middle(F.max_pool2d(F.relu(net.b(a)), 2)))
        dy, dx = a.size(2) - up.size(2), a.size(3) - up.size(3)
        up = F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return net.out(net.norm(net.down(torch.cat([a, up], 1))))

    net = Net(
        body,
        a=conv(3, 8),
        b=conv(8, 10),
        middle=conv(10, 9),
        up=nn.ConvTranspose2d(9, 7, 2, 2),
        down=conv(15, 12),
        norm=nn.GroupNorm(4, 12),
        out=nn.Conv2d(12, 2, 1),
    )
    return Idiom(net, {"a": 8, "b": 10, "middle": 9, "up": 7, "down": 3})


def hrnet_fusion() -> Idiom:
    """Every resolution has a stream, which all others are added to."""

    def body(net: Any, x: Tensor) -> Any:
        high, low = F.relu(net.high(x)), F.relu(net.low(x))
        fused = high + F.interpolate(net.up(low), scale_factor=2, mode="nearest")
        low = F.relu(low + net.down(high))
        return net.head(pooled(torch.cat([F.relu(fused), F.interpolate(low, size=fused.shape[-2:])], 1)))

    net = Net(
        body,
        high=conv(3, 8),
        low=conv(3, 10, stride=2),
        up=nn.Conv2d(10, 8, 1),
        down=conv(8, 10, stride=2),
        head=nn.Linear(18, 5),
    )
    return Idiom(net, {"high": 8, "low": 10})


def deep_layer_aggregation() -> Idiom:
    """A root reads both children; the last is added to it."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        first = F.relu(net.first(x) + x)
        second = F.relu(net.second(first))
        return net.head(pooled(F.relu(net.root(torch.cat([second, first], 1)) + second)))

    net = Net(body, stem=conv(3, 8), first=conv(8, 8), second=conv(8, 6), root=conv(14, 6, 1), head=nn.Linear(6, 5))
    return Idiom(net, {"stem": 8, "second": 6})


def repvgg() -> Idiom:
    """Three branches under norms of their own are one sum, which the identity ties to what came before."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        x = F.relu(net.norm3(net.conv3(x)) + net.norm1(net.conv1(x)) + net.identity(x))
        return net.head(pooled(net.wide(x)))

    norms = {name: nn.BatchNorm2d(8) for name in ("norm3", "norm1", "identity")}
    layers = {"conv3": conv(8, 8, bias=False), "conv1": conv(8, 8, 1, bias=False)}
    net = Net(body, stem=conv(3, 8), **layers, **norms, wide=conv(8, 10, stride=2), head=nn.Linear(10, 5))
    return Idiom(net, {"stem": 8, "wide": 10})


def atrous_pyramid() -> Idiom:
    """DeepLab's ASPP with its pooled branch, and the decoder that reads an earlier map too."""

    def body(net: Any, x: Tensor) -> Any:
        early = F.relu(net.stem(x))
        x = F.relu(net.deep(early))
        whole = F.interpolate(net.whole(F.adaptive_avg_pool2d(x, 1)), size=x.shape[-2:], mode="bilinear")
        x = net.project(torch.cat([*(F.relu(branch(x)) for branch in net.branches), whole], 1))
        x = F.interpolate(x, size=early.shape[-2:], mode="bilinear", align_corners=False)
        return net.out(torch.cat([x, net.reduce(early)], 1))

    net = Net(
        body,
        stem=conv(3, 8),
        deep=conv(8, 10, stride=2),
        branches=nn.ModuleList([conv(10, 4, 1), nn.Conv2d(10, 5, 3, padding=2, dilation=2)]),
        whole=nn.Conv2d(10, 3, 1),
        project=nn.Conv2d(12, 7, 1),
        reduce=nn.Conv2d(8, 2, 1),
        out=conv(9, 4),
    )
    groups = {"stem": 8, "deep": 10, "whole": 3, "branches.0": 4, "branches.1": 5, "project": 7, "reduce": 2}
    return Idiom(net, groups)


def ghost() -> Idiom:
    """Cheap copies of each channel, cut at an attribute that is as wide as both together."""

    def body(net: Any, x: Tensor) -> Any:
        primary = net.primary(net.a(x))
        x = torch.cat([primary, net.cheap(primary)], 1)[:, : net.outputs, :, :]
        return net.head(pooled(net.b(x)))

    net = Net(
        body,
        a=conv(3, 8),
        primary=conv(8, 6),
        cheap=conv(6, 6, groups=6),
        outputs=12,
        b=conv(12, 10),
        head=nn.Linear(10, 5),
    )
    return Idiom(net, {"a": 8, "primary": 6, "b": 10})


def res2net() -> Idiom:
    """Four parts, cut at an attribute; all but the last convolution write what a part is added to."""

    def body(net: Any, x: Tensor) -> Any:
        parts = torch.split(net.a(x), net.width, 1)
        done: list[Tensor] = []
        for layer, part in zip(net.layers, parts, strict=False):
            done.append(F.relu(layer(part if not done else done[-1] + part)))
        return net.head(pooled(net.out(torch.cat([*done, parts[len(net.layers)]], 1))))

    layers = nn.ModuleList(conv(4, 4) for _ in range(3))
    net = Net(body, a=conv(3, 16), width=4, layers=layers, out=conv(16, 9, 1), head=nn.Linear(9, 5))
    return Idiom(net, {"a": 4, "layers.2": 4, "out": 9})


def c2f() -> Idiom:
    """YOLOv8's block: halves of one layer, and a chain that starts at the second; the head's size is constant."""

    def body(net: Any, x: Tensor) -> Any:
        y = list(net.cv1(net.a(x)).chunk(2, 1))
        y.extend(block(y[-1]) for block in net.blocks)
        x = net.detect(net.cv2(torch.cat(y, 1)))
        b, _, height, width = x.shape
        return x.view(b, net.anchors, net.values, height, width).permute(0, 1, 3, 4, 2).contiguous()

    blocks = nn.ModuleList(nn.Sequential(conv(5, 4), nn.SiLU(), conv(4, 5)) for _ in range(2))
    net = Net(
        body,
        a=conv(3, 8),
        cv1=conv(8, 10, 1),
        blocks=blocks,
        cv2=conv(20, 6, 1),
        anchors=3,
        values=7,
        detect=conv(6, 21, 1),
    )
    groups = {"a": 8, "cv1": 5, "blocks.0.0": 4, "blocks.0.2": 5, "blocks.1.0": 4, "blocks.1.2": 5, "cv2": 6}
    return Idiom(net, groups)


def csp_by_sizes() -> Idiom:
    """The same cut at an attribute, twice."""

    def body(net: Any, x: Tensor) -> Any:
        first, second = net.cv1(net.a(x)).split((net.c, net.c), 1)
        return net.head(pooled(net.cv2(torch.cat([first, second, net.block(second)], 1))))

    layers = {"cv1": conv(8, 10, 1), "block": conv(5, 4), "cv2": conv(14, 6, 1)}
    net = Net(body, a=conv(3, 8), **layers, c=5, head=nn.Linear(6, 5))
    return Idiom(net, {"a": 8, "cv1": 5, "block": 4, "cv2": 6})


def focus_and_spatial_pyramid() -> Idiom:
    """YOLOv5: neighbours become channels of the first layer; a map is pooled again and again."""

    def body(net: Any, x: Tensor) -> Any:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = net.b(net.a(x))
        y1 = F.max_pool2d(x, 5, 1, 2)
        y2 = F.max_pool2d(y1, 5, 1, 2)
        return net.head(pooled(net.c(torch.cat([x, y1, y2, F.max_pool2d(y2, 5, 1, 2)], 1))))

    net = Net(body, a=conv(12, 8), b=conv(8, 5, 1), c=conv(20, 6, 1), head=nn.Linear(6, 5))
    return Idiom(net, {"a": 8, "b": 5, "c": 6})


def feature_pyramid_with_anchors() -> Idiom:
    """Levels share one tower and one pair of heads, whose outputs are listed anchor by anchor."""

    def body(net: Any, x: Tensor) -> dict[str, Tensor]:
        a = F.relu(net.a(x))
        b = F.relu(net.b(a))
        deep = net.lateral_b(b)
        levels = [net.lateral_a(a) + F.interpolate(deep, size=a.shape[-2:], mode="nearest"), deep]
        levels = [F.relu(net.tower(smooth(level))) for smooth, level in zip(net.smooth, levels, strict=True)]
        classes = [net.classes(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3) for x in levels]
        boxes = [net.boxes(x).flatten(2) for x in levels]
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 2)}

    net = Net(
        body,
        a=conv(3, 8, stride=2),
        b=conv(8, 10, stride=2),
        lateral_a=conv(8, 7, 1),
        lateral_b=conv(10, 7, 1),
        smooth=nn.ModuleList([conv(7, 6), conv(7, 6)]),
        tower=conv(6, 9),
        classes=conv(9, 6),
        boxes=conv(9, 4),
    )
    return Idiom(net, {"a": 8, "b": 10, "lateral_b": 7, "smooth.0": 6, "tower": 9})


def super_resolution() -> Idiom:
    """Runs of four channels become one of the shuffled map; what is added to the image is fixed."""

    def body(net: Any, x: Tensor) -> Any:
        y = net.out(net.shuffle(net.b(F.leaky_relu(net.a(x)))))
        return y + F.interpolate(x, scale_factor=2, mode="bicubic")

    net = Net(body, a=conv(3, 8), b=conv(8, 20), shuffle=nn.PixelShuffle(2), out=conv(5, 3))
    return Idiom(net, {"a": 8, "b": 5}, {"out": MEETS_FIXED})


def parameter_free_shortcut() -> Idiom:
    """ResNet's option A as a padding of constants: padded channels are always there."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        y = net.c(F.relu(net.b(x)))
        return net.head(pooled(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))

    net = Net(body, a=conv(3, 8), b=conv(8, 10, stride=2), c=conv(10, 16), head=nn.Linear(16, 5))
    return Idiom(net, {"a": 8, "b": 10}, {"c": MEETS_FIXED})


def shortcut_filled_up_with_zeros() -> Idiom:
    """The same, with as many zeros as are missing: those may go."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        y = net.c(F.relu(net.b(x)))
        x = F.avg_pool2d(x, 2)
        zeros = torch.zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])
        return net.head(pooled(y + torch.cat([x, zeros], 1)))

    net = Net(body, a=conv(3, 8), b=conv(8, 10, stride=2), c=conv(10, 14), head=nn.Linear(14, 5))
    return Idiom(net, {"a": 8, "b": 10, "c": 6})


def temporal_shift() -> Idiom:
    """TSM: an eighth of the channels moves forward in time, an eighth backward."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        frames, c, h, w = x.shape
        x, fold = x.view(frames // 2, 2, c, h, w), c // 8
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return net.head(pooled(net.b(out.view(frames, c, h, w))))

    net = Net(body, a=conv(3, 24), b=conv(24, 6), head=nn.Linear(6, 5))
    return Idiom(net, {"a": 3, "b": 6})


def maxout_in_halves() -> Idiom:
    """LightCNN: the halves, cut at an attribute, meet."""

    def body(net: Any, x: Tensor) -> Any:
        first, second = torch.split(net.a(x), net.outputs, 1)
        return net.head(pooled(net.b(torch.max(first, second))))

    net = Net(body, a=conv(3, 16), outputs=8, b=conv(8, 6), head=nn.Linear(6, 5))
    return Idiom(net, {"a": 8, "b": 6})


def maxout_in_pairs() -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        b, c, h, w = x.shape
        return net.head(pooled(x.view(b, c // 2, 2, h, w).amax(2)))

    return Idiom(Net(body, a=conv(3, 12), head=nn.Linear(6, 5)), {"a": 6})


def changed_in_place() -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        x = net.a(x)
        y = F.relu_(net.norm(net.b(x)))
        y += x
        y.mul_(0.5).clamp_(max=3)
        y[:, :, 0] = 0
        return net.head(pooled(y))

    return Idiom(Net(body, a=conv(3, 8), b=conv(8, 8), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 5)), {"a": 8})


def supervised_at_every_depth() -> Idiom:
    """One layer and one head, run at three resolutions."""

    def body(net: Any, x: Tensor) -> Any:
        x, outputs = net.a(x), []
        for _ in range(3):
            x = F.relu(net.b(x))
            outputs.append(net.head(x))
            x = F.avg_pool2d(x, 2)
        return tuple(outputs)

    return Idiom(Net(body, a=conv(3, 8), b=conv(8, 8), head=conv(8, 4)), {"a": 8})


def drop_path_and_layer_scale() -> Idiom:
    """Stochastic depth does nothing in eval mode."""

    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.9) / 0.9

    def body(net: Any, x: Tensor) -> Any:
        x = net.stem(x)
        y = net.fc2(F.gelu(net.fc1(net.norm(net.depthwise(x).permute(0, 2, 3, 1)))))
        return net.head(pooled(x + net.drop((net.gamma * y).permute(0, 3, 1, 2))))

    net = Net(
        body,
        stem=conv(3, 8),
        depthwise=conv(8, 8, 7, groups=8),
        norm=nn.LayerNorm(8),
        fc1=nn.Linear(8, 20),
        fc2=nn.Linear(20, 8),
        gamma=parameter(8),
        drop=DropPath(),
        head=nn.Linear(8, 5),
    )
    return Idiom(net, {"stem": 8, "fc1": 20})


FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "product_of_sizes": lambda x: x.view(-1, math.prod(x.size()[1:])),
    "numel": lambda x: x.view(x.shape[0], x.numel() // x.shape[0]),
    "start_dim": lambda x: torch.flatten(x, start_dim=1),
    "rest": lambda x: x.reshape(x.size(0), -1),
}


@pytest.mark.parametrize("how", FLATTENED)
def test_a_map_is_flattened(how: str) -> None:
    def body(net: Any, x: Tensor) -> Any:
        return net.head(FLATTENED[how](net.b(net.a(x))))

    check(Idiom(Net(body, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6 * 256, 5)), {"a": 8, "b": 6}))


# ------------------------------------------------------------------------------------- products and codebooks


def bilinear_pooling() -> Idiom:
    """Of a map with itself: a channel meets all others in as many columns as are left, which is no product of
    the widths of two groups."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x)).flatten(2)
        gram = torch.bmm(x, x.transpose(1, 2)) / x.shape[2]
        return net.head(F.normalize(gram.flatten(1)))

    net = Net(body, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(36, 5))
    return Idiom(net, {"a": 8}, {"b": "its channels meet unequal numbers of another group's"})


def bilinear_pooling_of_two() -> Idiom:
    """Of two maps: a column of the head for every pair of channels."""

    def body(net: Any, x: Tensor) -> Any:
        gram = torch.bmm(net.a(x).flatten(2), net.b(x).flatten(2).transpose(1, 2))
        return net.head(F.normalize(gram.flatten(1)))

    return Idiom(Net(body, a=conv(3, 8), b=conv(3, 6), head=nn.Linear(48, 5)), {"a": 8, "b": 6})


def capsules() -> Idiom:
    """The number and the size of capsules are constants of the code."""

    def body(net: Any, x: Tensor) -> Any:
        capsules = pooled(net.b(net.a(x))).view(x.size(0), 3, 8)
        return net.head(torch.einsum("bni,nij->bj", capsules, net.votes))

    net = Net(body, a=conv(3, 8), b=conv(8, 24), votes=parameter(3, 8, 6), head=nn.Linear(6, 4))
    return Idiom(net, {"a": 8, "votes": 6}, {"b": "view: its size is written as a constant"})


def codebook() -> Idiom:
    """VQ-VAE: the nearest code replaces the channels at a place, and gradients pass it by."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x)).permute(0, 2, 3, 1)
        flat = x.reshape(-1, x.shape[-1])
        codes = net.codes.weight
        distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ codes.t() + codes.pow(2).sum(1)
        nearest = net.codes(distance.argmin(1)).view(x.shape)
        return net.out((x + (nearest - x).detach()).permute(0, 3, 1, 2))

    net = Net(body, a=conv(3, 8), b=conv(8, 6), codes=nn.Embedding(7, 6), out=conv(6, 3))
    return Idiom(net, {"a": 8, "b": 6}, {"codes": "argmin"})


def siamese() -> Idiom:
    """One encoder, run on both images; the head reads what it wrote in three places."""

    def body(net: Any, one: Tensor, other: Tensor) -> Any:
        one, other = (pooled(net.b(F.relu(net.a(x)))) for x in (one, other))
        return net.head(torch.cat([one, other, (one - other).abs()], 1))

    net = Net(body, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(18, 5))
    return Idiom(net, {"a": 8, "b": 6}, inputs=(IMAGES, IMAGES.flip(0)))


# ------------------------------------------------------------------------------------ sequences, points, volumes


def recurrent_after_convolutions(kind: str) -> Idiom:
    """What a recurrent layer reads and writes stays."""

    def body(net: Any, x: Tensor) -> Any:
        x = net.b(net.a(x))
        b, c, h, w = x.shape
        x, _ = net.recurrent(x.permute(0, 3, 1, 2).reshape(b, w, c * h))
        return net.head(F.relu(net.fc(x[:, -1])))

    recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](6 * 16, 7, batch_first=True)
    net = Net(body, a=conv(3, 8), b=conv(8, 6), recurrent=recurrent, fc=nn.Linear(7, 9), head=nn.Linear(9, 5))
    countable = kind == "gru"  # of an LSTM, torch's counter knows nothing
    return Idiom(net, {"a": 8, "b": 6, "recurrent": 7, "fc": 9}, countable=countable)


def lstm() -> Idiom:
    return recurrent_after_convolutions("lstm")


def gru() -> Idiom:
    return recurrent_after_convolutions("gru")


def recurrence_by_hand() -> Idiom:
    """A cell of linear layers, run over time: its state is one group, its three gates are thirds of two layers."""

    def body(net: Any, x: Tensor) -> Any:
        state = x.new_zeros(x.shape[0], net.width)
        for step in range(3):
            r, z, n = net.inputs(x[:, step]).chunk(3, 1)
            hr, hz, hn = net.hidden(state).chunk(3, 1)
            z = torch.sigmoid(z + hz)
            state = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * state
        return net.head(state)

    net = Net(body, inputs=nn.Linear(12, 24), hidden=nn.Linear(8, 24), width=8, head=nn.Linear(8, 5))
    return Idiom(net, {}, {}, TOKENS)


def text_cnn() -> Idiom:
    """Kim's: convolutions of several widths over words, and the maximum over time."""

    def body(net: Any, words: Tensor) -> Any:
        x = net.words(words).transpose(1, 2)
        return net.head(torch.cat([F.relu(layer(x)).max(dim=2)[0] for layer in net.layers], 1))

    layers = nn.ModuleList(nn.Conv1d(10, 4 + size, size) for size in (2, 3))
    net = Net(body, words=nn.Embedding(11, 10), layers=layers, head=nn.Linear(13, 5))
    return Idiom(net, {"words": 10, "layers.0": 6, "layers.1": 7}, inputs=WORDS)


def wavenet() -> Idiom:
    """Gated, dilated convolutions with a residual stream and a sum of skips."""

    def body(net: Any, x: Tensor) -> Any:
        x, skips = net.stem(x), []
        for layer, residual, skip in zip(net.layers, net.residual, net.skip, strict=True):
            dilation = layer.dilation[0]
            filtered, gate = layer(F.pad(x, (dilation, 0))).chunk(2, 1)
            y = torch.tanh(filtered) * torch.sigmoid(gate)
            x = x + residual(y)
            skips.append(skip(y))
        return net.head(F.relu(sum(skips)))

    net = Net(
        body,
        stem=nn.Conv1d(3, 8, 1),
        layers=nn.ModuleList(nn.Conv1d(8, 10, 2, dilation=2**i) for i in range(2)),
        residual=nn.ModuleList(nn.Conv1d(5, 8, 1) for _ in range(2)),
        skip=nn.ModuleList(nn.Conv1d(5, 6, 1) for _ in range(2)),
        head=nn.Conv1d(6, 4, 1),
    )
    return Idiom(net, {"stem": 8, "layers.0": 5, "skip.0": 6, "layers.1": 5}, inputs=SIGNALS)


def factorised_volumes() -> Idiom:
    """R(2+1)D: space, then time."""

    def body(net: Any, x: Tensor) -> Any:
        x = F.relu(net.norm(net.time(F.relu(net.space(x)))))
        return net.head(F.adaptive_avg_pool3d(x, 1).flatten(1))

    net = Net(
        body,
        space=nn.Conv3d(3, 7, (1, 3, 3), padding=(0, 1, 1)),
        time=nn.Conv3d(7, 8, (3, 1, 1), padding=(1, 0, 0)),
        norm=nn.BatchNorm3d(8),
        head=nn.Linear(8, 5),
    )
    return Idiom(net, {"space": 7, "time": 8}, inputs=drawn(2, 3, 4, 6, 6))


def point_net() -> Idiom:
    """Points are turned by a matrix that a small network finds; the maximum over points joins each of them."""

    def body(net: Any, x: Tensor) -> Any:
        turn = net.turn(net.small(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        x = torch.bmm(x.transpose(2, 1), turn).transpose(2, 1)
        each = F.relu(net.a(x))
        whole = torch.max(net.b(each), 2, keepdim=True)[0]
        return net.out(torch.cat([each, whole.repeat(1, 1, x.shape[2])], 1))

    net = Net(
        body,
        small=nn.Conv1d(3, 6, 1),
        turn=nn.Linear(6, 9),
        a=nn.Conv1d(3, 8, 1),
        b=nn.Conv1d(8, 10, 1),
        out=nn.Conv1d(18, 4, 1),
    )
    frozen = {"turn": "view: its size is written as a constant"}
    return Idiom(net, {"small": 6, "a": 8, "b": 10}, frozen, SIGNALS)


# ------------------------------------------------------------------------------- generators and computed weights


def generator_with_pixel_norm() -> Idiom:
    """What `z` is reshaped to has a constant size in space, and channels; the norm is over those that are left."""

    def body(net: Any, z: Tensor) -> Any:
        x = net.start(net.mapping(z)).view(z.shape[0], -1, 4, 4)
        for layer in net.layers:
            x = F.leaky_relu(layer(x), 0.2)
            x = x * torch.rsqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)
        return torch.tanh(net.image(x))

    net = Net(
        body,
        mapping=nn.Linear(12, 10),
        start=nn.Linear(10, 9 * 16),
        layers=nn.ModuleList([nn.ConvTranspose2d(9, 8, 4, 2, 1), conv(8, 6)]),
        image=nn.Conv2d(6, 3, 1),
    )
    groups = {"mapping": 10, "start": 9, "layers.0": 8, "layers.1": 6}
    return Idiom(net, groups, inputs=drawn(2, 12))


def adaptive_instance_norm() -> Idiom:
    """Style shifts and scales every channel of the map: half of the layer each."""

    def body(net: Any, x: Tensor, style: Tensor) -> Any:
        gamma, beta = net.style(style)[..., None, None].chunk(2, 1)
        return net.out((1 + gamma) * net.norm(net.a(x)) + beta)

    net = Net(body, a=conv(3, 8), norm=nn.InstanceNorm2d(8), style=nn.Linear(12, 16), out=conv(8, 3))
    return Idiom(net, {"style": 8}, inputs=(IMAGES, drawn(2, 12)))


def normalised(wrap: Callable[[nn.Module], nn.Module], inside: str = "", countable: bool = True) -> Idiom:
    def body(net: Any, x: Tensor) -> Any:
        return net.head(pooled(net.b(F.relu(net.a(x)))))

    net = Net(body, a=wrap(conv(3, 8)), b=wrap(conv(8, 6)), head=nn.Linear(6, 5))
    return Idiom(net, {f"a{inside}": 8, f"b{inside}": 6}, countable=countable)


def weight_norm() -> Idiom:
    return normalised(nn.utils.parametrizations.weight_norm, ".parametrizations.weight")


def weight_norm_by_hooks() -> Idiom:
    return normalised(nn.utils.weight_norm)


def spectral_norm() -> Idiom:
    """By products with vectors, which torch's counter leaves away."""
    return normalised(nn.utils.parametrizations.spectral_norm, ".parametrizations.weight", countable=False)


def spectral_norm_by_hooks() -> Idiom:
    return normalised(nn.utils.spectral_norm, countable=False)


def equalised_learning_rate() -> Idiom:
    """The weight is scaled whenever it is used, by a constant."""

    class Equalised(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight, self.bias = parameter(outputs, inputs, 3, 3), parameter(outputs)
            self.scale = 1 / math.sqrt(inputs * 9)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.scale, self.bias, padding=1)

    return normalised_layers(Equalised(3, 8), Equalised(8, 6))


def standardised_weights() -> Idiom:
    """Each filter has a mean and a deviation of its own, over what it reads."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
            std = self.weight.std(dim=(1, 2, 3), keepdim=True)
            weight = (self.weight - mean) / (std + 1e-5)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    return normalised_layers(Standardised(3, 8, 3, padding=1), Standardised(8, 6, 3, padding=1))


def normalised_layers(a: nn.Module, b: nn.Module) -> Idiom:
    layers = iter((a, b))
    return normalised(lambda _: next(layers))


# --------------------------------------------------------------------------------------------- kinds of inputs


def inputs_in_a_dict() -> Idiom:
    def body(net: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = net.image(batch["image"]) + net.depth(batch["depth"])
        return {"map": net.out(x), "class": net.head(pooled(x))}

    net = Net(body, image=conv(3, 8), depth=conv(1, 8), out=conv(8, 2), head=nn.Linear(8, 5))
    return Idiom(net, {"image": 8}, inputs=({"image": IMAGES, "depth": IMAGES[:, :1]},))


def inputs_in_a_list() -> Idiom:
    def body(net: Any, views: list[Tensor], *, weight: float = 1.0) -> Any:
        maps = [F.relu(net.a(view)) for view in views]
        return net.head(pooled(torch.stack(maps).amax(0) * weight))

    net = Net(body, a=conv(3, 8), head=nn.Linear(8, 5))
    return Idiom(net, {"a": 8}, inputs=([IMAGES, IMAGES.flip(3), -IMAGES],))


def inputs_by_name() -> Idiom:
    def body(net: Any, x: Tensor, mask: Tensor | None = None, *, scale: Tensor) -> Any:
        x = net.a(x) * scale
        return net.head(pooled(x if mask is None else x.masked_fill(mask, 0)))

    net = Net(body, a=conv(3, 8), head=nn.Linear(8, 5))
    inputs = {"x": IMAGES, "mask": IMAGES[:, :1] > 1, "scale": torch.tensor(2.0)}
    return Idiom(net, {"a": 8}, inputs=inputs)


# ------------------------------------------------------------------------------------------------- the table

IDIOMS: tuple[Callable[[], Idiom], ...] = (
    vit_with_heads_from_the_stream,
    vit_with_heads_of_their_own,
    vit_of_torch,
    swin_windows,
    swin_relative_positions,
    coatnet_relative_positions,
    maxvit_grid,
    efficientvit_linear_attention,
    cross_covariance_attention,
    rotary_halves,
    rotary_neighbours,
    grouped_queries,
    tied_language_model,
    shared_blocks,
    torch_encoder,
    cross_attention_of_torch,
    learned_queries,
    modulated_by_a_condition,
    mixer,
    gated_mlp,
    swiglu,
    soft_mixture_of_experts,
    squeeze_and_excite_by_views,
    cbam,
    efficient_channel_attention,
    selective_kernel,
    non_local,
    attention_gate,
    involution,
    mixed_kernels,
    deformed_sampling,
    inception,
    unet,
    hrnet_fusion,
    deep_layer_aggregation,
    repvgg,
    atrous_pyramid,
    ghost,
    res2net,
    c2f,
    csp_by_sizes,
    focus_and_spatial_pyramid,
    feature_pyramid_with_anchors,
    super_resolution,
    parameter_free_shortcut,
    shortcut_filled_up_with_zeros,
    temporal_shift,
    maxout_in_halves,
    maxout_in_pairs,
    changed_in_place,
    supervised_at_every_depth,
    drop_path_and_layer_scale,
    bilinear_pooling,
    bilinear_pooling_of_two,
    capsules,
    codebook,
    siamese,
    lstm,
    gru,
    text_cnn,
    wavenet,
    factorised_volumes,
    point_net,
    generator_with_pixel_norm,
    adaptive_instance_norm,
    weight_norm,
    weight_norm_by_hooks,
    spectral_norm,
    spectral_norm_by_hooks,
    equalised_learning_rate,
    standardised_weights,
    inputs_in_a_dict,
    inputs_in_a_list,
    inputs_by_name,
)


def randomise_norms(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.get_buffer("running_mean").normal_(0, 0.3, generator=generator)
            module.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
            nn.init.normal_(module.weight, 1, 0.3, generator)


def counted(net: nn.Module, inputs: Inputs) -> float:
    """MACs per example by torch's own counter."""
    args, kwargs = arguments(inputs)
    batch = next(v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)).shape[0]
    net.requires_grad_(False)  # the counter trips over parameters that are no layer's
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(*args, **kwargs)
    return float(counter.get_total_flops()) / 2 / batch


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda make: str(make.__name__))
def test_idiom(idiom: Callable[[], Idiom]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        check(idiom())


def check(made: Idiom) -> None:
    """Its groups, and ten random policies of it."""
    net, inputs = made.net.eval(), made.inputs
    randomise_norms(net)
    graph = trace(net, inputs)
    assert {group.name: group.size for group in graph.groups} == made.groups
    reasons: dict[str, str] = {}
    for group in graph.frozen:
        if group.frozen != "network output":
            reasons.setdefault(group.name, str(group.frozen))
    assert reasons.keys() == made.frozen.keys()
    assert [name for name, reason in reasons.items() if not reason.startswith(made.frozen[name])] == []

    with torch.no_grad():
        shapes = [output.shape for output in call(net, inputs)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        keep = torch.rand(graph.n_channels, generator=generator) < 0.6
        keep[torch.from_numpy(graph.offsets[:-1])] = True
        slimmed, widths = slim(net, graph, keep), graph.widths(keep)
        with torch.no_grad():
            assert [output.shape for output in call(slimmed, inputs)] == shapes
        assert sum(p.numel() for p in slimmed.parameters()) == int(graph.params(widths))
        assert not made.countable or counted(slimmed, inputs) == int(graph.macs(widths))
