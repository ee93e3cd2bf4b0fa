"""The decoder block of the Qwen families: Qwen3 (norms on queries and keys) and Qwen2.5 (biases on q, k, v).

Letters: B batch, T queries, S keys, D model, N heads, K key heads, H head size, F MLP.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.weights import Entry
from spatialreward_jax.models.layers import Linear, RMSNorm


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; `qkv_bias` and `qk_norm` are what tells the two families apart."""

    dim: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    theta: float
    qkv_bias: bool
    qk_norm: bool

    @classmethod
    def from_dict(cls, config: dict[str, Any], *, qkv_bias: bool, qk_norm: bool) -> "DecoderConfig":
        """Reads a Hugging Face text config, with rotary settings of either transformers 4 or 5.

        Raises:
          InputError: a field is missing, or asks for something that the block does not do.
        """
        settings = rope(config)
        try:
            heads, dim = config["num_attention_heads"], config["hidden_size"]
            sizes = {
                "mlp": config["intermediate_size"],
                "layers": config["num_hidden_layers"],
                "kv_heads": config.get("num_key_value_heads", heads),
                "head_dim": config.get("head_dim") or dim // heads,
                "vocab": config["vocab_size"],
                "eps": config.get("rms_norm_eps", 1e-6),
                "theta": float(config["rope_theta"] if "rope_theta" in config else settings["rope_theta"]),
            }
        except KeyError as missing:
            raise InputError(f"the text config has no {missing}: use the config.json of the checkpoint") from None
        if heads % sizes["kv_heads"]:
            raise InputError(f"{heads} attention heads are no multiple of {sizes['kv_heads']} key-value heads")
        if config.get("hidden_act", "silu") != "silu":
            raise InputError(f"hidden_act {config['hidden_act']!r} of the text config is not supported; only 'silu' is")
        if config.get("use_sliding_window"):
            raise InputError("use_sliding_window true is not supported: only full attention is")
        return cls(dim=dim, heads=heads, qkv_bias=qkv_bias, qk_norm=qk_norm, **sizes)


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a text config: `rope_parameters` (transformers 5) or `rope_scaling` (4).

    Raises:
      InputError: they ask for a length extension such as yarn.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise InputError(f"rotary type {kind!r} is not supported; only the default one is")
    return settings


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """float32 [H / 2] in radians per position, taken from float64."""
    return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary embedding that pairs channel j with j + H / 2; x [B, T, N, H], angles float32 [B, T, H / 2]."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q [B, T, N, H], k [B, T, K, H], v [B, T, K, H]) of a layer -> (mixed values [B, T, N, H], anything to hand out)."""


class Attention(nnx.Module):
    """Grouped-query projections and rotary phases around an `attend` of the caller's. x [B, T, D] -> [B, T, D]."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        self.q = Linear(c.dim, (c.heads, c.head_dim), bias=c.qkv_bias, rngs=rngs)  # D N H
        self.k = Linear(c.dim, (c.kv_heads, c.head_dim), bias=c.qkv_bias, rngs=rngs)  # D K H
        self.v = Linear(c.dim, (c.kv_heads, c.head_dim), bias=c.qkv_bias, rngs=rngs)  # D K H
        self.o = Linear((c.heads, c.head_dim), c.dim, rngs=rngs)  # N H D
        self.q_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else None

    def __call__(self, x: jax.Array, angles: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, out = attend(rotate(q, angles), rotate(k, angles), v)
        return self.o(mixed), out


class MLP(nnx.Module):
    """SiLU-gated MLP. [B, T, D] -> [B, T, D]."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        self.gate = Linear(c.dim, c.mlp, rngs=rngs)
        self.up = Linear(c.dim, c.mlp, rngs=rngs)
        self.down = Linear(c.mlp, c.dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderBlock(nnx.Module):
    """Pre-norm block. x [B, T, D], angles [B, T, H / 2] -> (x, what `attend` hands out)."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        self.attn_norm = RMSNorm(c.dim, c.eps)
        self.attn = Attention(c, rngs=rngs)
        self.mlp_norm = RMSNorm(c.dim, c.eps)
        self.mlp = MLP(c, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        mixed, out = self.attn(self.attn_norm(x), angles, attend)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), out


def decoder_entries(prefix: str, c: DecoderConfig) -> tuple[Entry, ...]:
    """Table of the parameters `embed`, `blocks` and `norm` whose checkpoint names start with `prefix`."""
    layer, heads = f"{prefix}layers.{{L}}.", "(N H) D -> D N H"
    kv_heads = "(K H) D -> D K H"
    rows = [
        (f"{prefix}embed_tokens.weight", "embed.table", None),
        (f"{layer}input_layernorm.weight", "blocks.attn_norm.scale", None),
        (f"{layer}self_attn.q_proj.weight", "blocks.attn.q.kernel", heads),
        (f"{layer}self_attn.k_proj.weight", "blocks.attn.k.kernel", kv_heads),
        (f"{layer}self_attn.v_proj.weight", "blocks.attn.v.kernel", kv_heads),
        (f"{layer}self_attn.o_proj.weight", "blocks.attn.o.kernel", "D (N H) -> N H D"),
        (f"{layer}post_attention_layernorm.weight", "blocks.mlp_norm.scale", None),
        (f"{layer}mlp.gate_proj.weight", "blocks.mlp.gate.kernel", "F D -> D F"),
        (f"{layer}mlp.up_proj.weight", "blocks.mlp.up.kernel", "F D -> D F"),
        (f"{layer}mlp.down_proj.weight", "blocks.mlp.down.kernel", "D F -> F D"),
        (f"{prefix}norm.weight", "norm.scale", None),
    ]
    if c.qk_norm:
        rows += [(f"{layer}self_attn.{n}_norm.weight", f"blocks.attn.{n}_norm.scale", None) for n in "qk"]
    if c.qkv_bias:
        rows += [
            (f"{layer}self_attn.q_proj.bias", "blocks.attn.q.bias", "(N H) -> N H"),
            (f"{layer}self_attn.k_proj.bias", "blocks.attn.k.bias", "(K H) -> K H"),
            (f"{layer}self_attn.v_proj.bias", "blocks.attn.v.bias", "(K H) -> K H"),
        ]
    return tuple(Entry(*row) for row in rows)


DECODER_SHARDING = (
    (r"^embed\.table$", ("tensor", "fsdp")),  # V D
    (r"^blocks\.attn\.[qkv]\.kernel$", (None, "fsdp", "tensor", None)),  # L D N H
    (r"^blocks\.attn\.[qkv]\.bias$", (None, "tensor", None)),  # L N H
    (r"^blocks\.attn\.o\.kernel$", (None, "tensor", None, "fsdp")),  # L N H D
    (r"^blocks\.mlp\.(gate|up)\.kernel$", (None, "fsdp", "tensor")),  # L D F
    (r"^blocks\.mlp\.down\.kernel$", (None, "tensor", "fsdp")),  # L F D
    (r"^(blocks\.(attn|mlp)_norm|blocks\.attn\.[qk]_norm|norm)\.scale$", ()),
)
