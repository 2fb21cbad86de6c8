"""HNCT, the hybrid network of CNN and transformer.

Source: Fang et al., "A Hybrid Network of CNN and Transformer for Lightweight Image Super-Resolution", CVPR Workshops
2022; key for key the official state dict, its derived buffers included. C is the width, 50.

Nothing branches on the size: a branch would be traced at one size and be wrong at the others. The windows are padded
always (by zero pixels at multiples of 8), the shift is two slices, and the mask comes from comparisons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import PooledAttention, conv3x3

WINDOW = 8
_SHIFT = WINDOW // 2
_TOKENS = WINDOW * WINDOW
_MASKED = -100.0


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned bias for every relative position.

    Source: Swin Transformer, Liu et al. 2021.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions())
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """``windows`` is (N, nW, 64, C); ``mask`` (nW, 64, 64), added to the logits of every head."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1))  # (N, nW, 64, 3, heads, C/heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (N, nW, heads, 64, C/heads) each
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(_TOKENS, _TOKENS, self.heads).permute(2, 0, 1)  # (heads, 64, 64)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias  # (N, nW, heads, 64, 64)
        if mask is not None:
            logits = logits + mask[:, None]
        return self.proj((logits.softmax(dim=-1) @ v).transpose(2, 3).flatten(-2))


class FeedForward(nn.Module):
    """The transformer's MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinLayer(nn.Module):
    """One layer of a Swin transformer; every second one shifts its windows by half their side."""

    def __init__(self, width: int, heads: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        if shifted:
            # In the official files; read by nothing here, for it fits one size only.
            self.register_buffer("attn_mask", shift_mask(_TOKENS, _TOKENS))
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same; H and W are multiples of 8."""
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        y = self.norm1(x)
        if self.shifted:
            y = roll(y, _SHIFT)
        mask = shift_mask(x.shape[1], x.shape[2], like=x) if self.shifted else None
        y = self.attn(to_windows(y, rows, columns), mask)
        y = from_windows(y, rows, columns)
        if self.shifted:
            y = roll(y, -_SHIFT)
        x = x + y
        return x + self.mlp(self.norm2(x))


class _Embedding(nn.Module):
    """Holds the norm under its official name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)


class SwinPart(nn.Module):
    """Two layers on normalised tokens, which replace the features: no skip around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinLayer(width, heads, shifted=shifted) for shifted in (False, True))
        self.patch_embed = _Embedding(width)

    def forward(self, x: Tensor) -> Tensor:
        height, columns = x.shape[2:]
        t = pad_to_windows(pad_to_windows(x, 2), 3).permute(0, 2, 3, 1)  # (N, H', W', C)
        t = self.patch_embed.norm(t)
        for layer in self.blocks:
            t = layer(t)
        return crop(crop(t, height, 1), columns, 2).permute(0, 3, 1, 2).contiguous()


class Transformer(nn.Module):
    """The transformer half of a hybrid block: one Swin part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.transformer_body = nn.Sequential(SwinPart(width, heads))

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer_body(x)


class Block(nn.Module):
    """HBCT: attention, transformer, convolution, attention; no activation and no skip around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c1_r = conv3x3(width, width)
        self.esa = PooledAttention(width, width // 4)
        self.esa2 = PooledAttention(width, width // 4)
        self.swinT = Transformer(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.esa(self.c1_r(self.swinT(self.esa2(x))))  # (N, C, H, W) throughout


class Hnct(nn.Module):
    """HNCT: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; H, W of at least 15.

    Do not pad its input to a multiple of 8: only the windows may see the padding, not the convolutions.
    """

    def __init__(self, scale: int = 4, *, width: int = 50, blocks: int = 4, heads: int = 5) -> None:
        super().__init__()
        self.scale = scale
        self.fea_conv = conv3x3(3, width)
        self.block_names = [f"B{k}" for k in range(1, blocks + 1)]
        for name in self.block_names:
            self.add_module(name, Block(width, heads))
        self.c = nn.Sequential(nn.Conv2d(blocks * width, width, 1), nn.LeakyReLU(0.05))
        self.LR_conv = conv3x3(width, width)
        self.upsampler = nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(x)  # (N, C, H, W)
        h, stages = shallow, []
        for name in self.block_names:
            h = self.get_submodule(name)(h)
            stages.append(h)
        deep = self.LR_conv(self.c(torch.cat(stages, dim=1)))  # 4C -> C
        return self.upsampler(deep + shallow)  # (N, 3, sH, sW)


def pad_to_windows(x: Tensor, dim: int) -> Tensor:
    """Reflect the end of one axis, its last pixel not repeated, up to a multiple of the window.

    By index, not by ``F.pad``: engines are weak at a reflecting Pad of variable size.
    """
    length = x.shape[dim]
    padded = (length + WINDOW - 1) // WINDOW * WINDOW
    last = length - 1
    return x.index_select(dim, last - (last - torch.arange(padded, device=x.device)).abs())


def crop(x: Tensor, length: int, dim: int) -> Tensor:
    """The first ``length`` positions of one axis.

    By index, not as a slice: the exporter cannot prove that the padded axis is long enough, and rather than say so
    narrows the graph to sizes with the example's remainder by 8.
    """
    return x.index_select(dim, torch.arange(length, device=x.device))


def to_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """(N, 8·rows, 8·columns, C) to (N, rows·columns, 64, C), all in row-major order."""
    x = x.reshape(x.shape[0], rows, WINDOW, columns, WINDOW, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], rows * columns, _TOKENS, x.shape[-1])


def from_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of ``to_windows``."""
    x = x.reshape(x.shape[0], rows, columns, WINDOW, WINDOW, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], rows * WINDOW, columns * WINDOW, x.shape[-1])


def roll(x: Tensor, shift: int) -> Tensor:
    """Move rows and columns of (N, H, W, C) towards the start by ``shift``; what falls off comes back at the end."""
    x = torch.cat((x[:, shift:], x[:, :shift]), dim=1)
    return torch.cat((x[:, :, shift:], x[:, :, :shift]), dim=2)


def shift_mask(height: int, width: int, *, like: Tensor | None = None) -> Tensor:
    """Mask of the shifted windows, (nW, 64, 64): −100 between pixels that only the roll has made neighbours.

    ``height`` and ``width`` are of the padded map, multiples of 8.
    """
    labels = 3 * _bands(height, like)[:, None] + _bands(width, like)  # (H', W')
    labels = labels.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW).transpose(1, 2)
    labels = labels.reshape(-1, _TOKENS)  # (nW, 64)
    apart = labels[:, :, None] != labels[:, None, :]
    return apart.to(torch.float32 if like is None else like.dtype) * _MASKED


def _bands(length: int, like: Tensor | None) -> Tensor:
    """Per position: 0, then 1 in the last window's first half, then 2 in its second."""
    position = torch.arange(length, device=None if like is None else like.device)
    return (position >= length - WINDOW).long() + (position >= length - _SHIFT).long()


def _relative_positions() -> Tensor:
    """(64, 64) int64: row of the bias table for query i and key j."""
    position = torch.arange(_TOKENS)
    row, column = position // WINDOW, position % WINDOW
    side = 2 * WINDOW - 1
    rows = row[:, None] - row + WINDOW - 1
    return rows * side + column[:, None] - column + WINDOW - 1
