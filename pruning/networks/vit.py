"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) in the sizes of DeiT (arXiv:2012.12877).

The defaults cut images of 32x32 into patches of 4x4. Images of other sizes are taken too: the learned positions are
resized to their grid of patches.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espalier.errors import ConfigError
from espalier.pruning.networks.arguments import (
    check_choice,
    check_classes_and_channels,
    check_dropout,
    check_whole,
)

_SIZES: Final = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # size -> (channels, heads)
_EXPANSION: Final = 4  # hidden channels of an MLP, per channel


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: channels.
        heads: that share them.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (batch, tokens, dim).

        Returns:
            The same shape.
        """
        batch, tokens = x.shape[:2]
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))  # (batch, heads, tokens, head_dim)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: channels that come in and go out.
        hidden: channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers.

        Args:
            x: (batch, tokens, dim).

        Returns:
            The same shape.
        """
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class EncoderBlock(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside the residual stream.

    Args:
        dim: channels of the stream.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(dim, _EXPANSION * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (batch, tokens, dim).

        Returns:
            The same shape.
        """
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """An encoder over patches, read from a token of its own.

    Args:
        size: "tiny", "small" or "base".
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        image_size: side of the images that the positions are for, in pixels.
        patch_size: side of a patch, in pixels.
        depth: blocks.
        dropout: fraction of the embedded tokens dropped in training, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> network = VisionTransformer("tiny", num_classes=1000, image_size=224, patch_size=16)
        >>> sum(parameter.numel() for parameter in network.parameters())
        5717416
    """

    def __init__(
        self,
        size: str,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 4,
        depth: int = 12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("size", size, tuple(_SIZES), "it sets channels and heads")
        check_classes_and_channels(num_classes, in_channels)
        check_whole("patch_size", patch_size, 1, "it is the side of a patch, in pixels")
        check_whole("image_size", image_size, patch_size, "it is the side of the images, in pixels")
        check_whole("depth", depth, 1, "it counts the blocks")
        check_dropout(dropout)
        if image_size % patch_size:
            raise ConfigError(
                f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}: choose a patch "
                "that divides it"
            )
        dim, heads = _SIZES[size]
        self.grid = image_size // patch_size
        self.patch_embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for tokens in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images, (batch, in_channels, height, width).

        Returns:
            logits, (batch, num_classes).
        """
        x = self.patch_embed(x)
        positions = self._positions(x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(self.pos_drop(x + positions)))
        logits: Tensor = self.head(x[:, 0])
        return logits

    def _positions(self, height: int, width: int) -> Tensor:
        """Of the token and a grid of patches: (1, 1 + height * width, dim)."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        first, rest = self.pos_embed.split([1, self.grid**2], 1)
        resized = F.interpolate(
            rest.transpose(1, 2).unflatten(2, (self.grid, self.grid)),
            size=(height, width),
            mode="bilinear",
            antialias=True,
        )
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], 1)
