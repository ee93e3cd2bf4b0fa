"""The text tower of Qwen2.5-VL, as OmniGen2 uses it: text in, hidden states out.

OmniGen2 never shows it an image, so its vision weights are left out on purpose (`IGNORED`), and its three rotary axes
are one: the token's index.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.weights import Entry
from spatialreward_jax.kernels.attention import attention
from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.layers import Embedding, RMSNorm, scan_blocks, stack_blocks
from spatialreward_jax.models.qwen_layers import (
    DECODER_SHARDING,
    DecoderBlock,
    DecoderConfig,
    decoder_entries,
    inverse_frequencies,
)

PREFIXES = ("model.language_model.", "model.")
"""How text tensors' names start: as transformers 5 writes them, and as the published files have them."""

IGNORED = (r"(model\.)?visual\.", r"lm_head\.weight$")
"""Tensors of a checkpoint that the tower does not use: the vision tower and the head."""

SHARDING = DECODER_SHARDING
"""Path regex -> mesh axes, exactly one row per parameter."""


@dataclasses.dataclass(frozen=True)
class Qwen2_5TextConfig:
    """Sizes of the tower."""

    text: DecoderConfig

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Qwen2_5TextConfig":
        """Reads a Hugging Face `config.json`, with the text fields at the top (as published) or under `text_config`.

        Raises:
          InputError: it is of another architecture or asks for what the tower does not do.
        """
        kind = config.get("model_type", "qwen2_5_vl")
        if kind not in ("qwen2_5_vl", "qwen2_5_vl_text"):
            raise InputError(f"model_type {kind!r} is not the text encoder of OmniGen2: want 'qwen2_5_vl'")
        return cls(DecoderConfig.from_dict(config.get("text_config", config), qkv_bias=True, qk_norm=False))


class Qwen2_5Text(nnx.Module):
    """Causal text tower; activations in `dtype`, whatever the dtype of the parameters."""

    def __init__(self, config: Qwen2_5TextConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        c = config.text
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embed = Embedding(c.vocab, c.dim, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: DecoderBlock(c, rngs=rngs), c.layers, rngs)
        self.norm = RMSNorm(c.dim, c.eps)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Right-padded int32 [B, T], mask bool [B, T] -> hidden [B, T, D] after the final norm, 0 on padding."""
        c = self.config.text
        x = constrain(self.embed(tokens).astype(self.dtype), BATCH)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        angles = positions.astype(jnp.float32)[..., None] * inverse_frequencies(c.head_dim, c.theta)
        attend = lambda q, k, v: (attention(q, k, v, positions=positions), None)

        def block(block: DecoderBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            x, _ = block(x, angles, attend)
            return constrain(x, BATCH), None

        x, _ = scan_blocks(self.blocks, block, x)
        return self.norm(x) * mask[..., None].astype(x.dtype)


def entries(config: Qwen2_5TextConfig, names: Iterable[str]) -> tuple[Entry, ...]:
    """The table for a checkpoint with these tensor names; both namings are known.

    Raises:
      InputError: neither naming has an embedding table there.
    """
    names = set(names)
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in names:
            return decoder_entries(prefix, config.text)
    raise InputError(
        f"none of {len(names)} tensors is {' or '.join(f'{p}embed_tokens.weight' for p in PREFIXES)}: "
        "give the folder of a Qwen2.5-VL checkpoint"
    )
