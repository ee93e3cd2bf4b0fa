"""Floating-point operations of our nets, counted from their shapes: 2 per multiplication and addition of a product.

Norms, activations, softmax and rotary phases are left out: together below 2% at the published widths.
"""

import dataclasses
from collections.abc import Sequence

from spatialreward_jax.models.omnigen2 import OmniGen2Config
from spatialreward_jax.models.omnigen2.config import TIME_CHANNELS
from spatialreward_jax.models.qwen3_vl import Qwen3VLConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """linear: products with weights; attention: scores and mixing, which the backward pass does twice over."""

    linear: float = 0.0
    attention: float = 0.0
    lora: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.linear + other.linear, self.attention + other.attention, self.lora + other.lora)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.linear * times, self.attention * times, self.lora * times)

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.linear + self.attention + self.lora

    @property
    def backward(self) -> float:
        """The backward pass to adapters alone: no weight gradients but theirs."""
        return self.linear + 2 * self.attention + 2 * self.lora

    @property
    def again(self) -> float:
        """What our backward pass computes again: every block's forward, and the scores once more."""
        return self.forward + self.attention / 2


def omnigen2(c: OmniGen2Config, *, text: int, refs: Sequence[int], target: int, rank: int = 0) -> Flops:
    """One velocity of one sample with `text` tokens, references of `refs` tokens and `target` tokens; no padding."""
    total = sum(refs) + text + target
    parts = [_block(c, text, False, rank)] + [_block(c, n, True, rank) for n in (target, *refs)]
    blocks = sum(parts, Flops()) * c.num_refiner_layers + _block(c, total, True, rank) * c.num_layers
    ends = (target + sum(refs)) * c.token_channels * c.hidden_size + text * c.text_feat_dim * c.hidden_size
    ends += TIME_CHANNELS * c.time_dim + c.time_dim**2 + c.time_dim * c.hidden_size
    ends += target * c.hidden_size * c.output_channels
    return blocks + Flops(linear=2 * ends)


def _block(c, tokens, modulated, rank):
    d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_kv_heads * c.head_dim
    linear = tokens * (2 * d * q + 2 * d * kv + 3 * d * c.mlp_dim) + (4 * d * c.time_dim if modulated else 0)
    lora = tokens * rank * (2 * (d + q) + 2 * (d + kv))
    return Flops(2 * linear, 4 * tokens**2 * q, 2 * lora)


def qwen3_vision(c: Qwen3VLConfig, patches: int) -> float:
    """Features of one image of `patches` patches."""
    v = c.vision
    merged = v.dim * v.merge**2
    block = patches * (4 * v.dim**2 + 2 * v.dim * v.mlp) + 2 * patches**2 * v.dim
    mergers = (1 + len(v.taps)) * patches // v.merge**2 * (merged**2 + merged * v.out_dim)
    return 2 * (patches * v.patch_size * v.dim + v.layers * block + mergers)


def qwen3_text(c: Qwen3VLConfig, tokens: int, before: int = 0) -> float:
    """`tokens` tokens of one prompt behind `before` others, causal, and the logits of the last one."""
    t = c.text
    q, kv = t.heads * t.head_dim, t.kv_heads * t.head_dim
    seen = tokens * before + tokens * (tokens + 1) / 2
    block = tokens * (2 * t.dim * q + 2 * t.dim * kv + 3 * t.dim * t.mlp) + 2 * seen * q
    return 2 * (t.layers * block + t.dim * t.vocab)


def qwen3_weights(c: Qwen3VLConfig) -> int:
    """Weights that each decoded token reads: the decoder's blocks and the head."""
    t = c.text
    q, kv = t.heads * t.head_dim, t.kv_heads * t.head_dim
    return t.layers * (2 * t.dim * q + 2 * t.dim * kv + 3 * t.dim * t.mlp) + t.dim * t.vocab
