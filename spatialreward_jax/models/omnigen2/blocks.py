"""The transformer block: sandwich norms, grouped-query attention with q/k norms and rotary positions, SwiGLU.

Where a mesh has a `tensor` axis, the MLP is split over its inner width and everything else over tokens (see
`weights.SHARDING` for why the heads are not).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from spatialreward_jax.kernels import attention as kernel
from spatialreward_jax.kernels.attention import attention
from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.layers import Linear, RMSNorm
from spatialreward_jax.models.omnigen2.config import OmniGen2Config
from spatialreward_jax.models.omnigen2.rope import rotate

QK_EPS = 1e-5

KEPT = (kernel.KEPT, "mlp")
"""What the backward pass keeps besides each block's input (`scan_blocks`): outputs of attention and MLP, three times
the memory. The sandwich norms need both, and so a third of a block's multiplications is not done twice."""


class Attention(nnx.Module):
    """Self-attention within segments. x [B, T, D], segments int32 [B, T], phase [B, T, H/2, 2] -> [B, T, D]."""

    def __init__(self, c: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        heads, kv_heads = (c.num_attention_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
        self.q = Linear(c.hidden_size, heads, rngs=rngs, dtype=dtype)
        self.k = Linear(c.hidden_size, kv_heads, rngs=rngs, dtype=dtype)
        self.v = Linear(c.hidden_size, kv_heads, rngs=rngs, dtype=dtype)
        self.out = Linear(heads, c.hidden_size, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(c.head_dim, QK_EPS, dtype=dtype)
        self.k_norm = RMSNorm(c.head_dim, QK_EPS, dtype=dtype)

    def __call__(self, x: jax.Array, segments: jax.Array, phase: jax.Array) -> jax.Array:
        q = rotate(self.q_norm(self.q(x)), phase)
        k = rotate(self.k_norm(self.k(x)), phase)
        k, v = constrain(k, BATCH, None, None, None), constrain(self.v(x), BATCH, None, None, None)
        return self.out(constrain(attention(q, k, v, segments=(segments, segments)), BATCH, "tensor", None, None))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), [B, T, D] -> [B, T, D]."""

    def __init__(self, c: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.gate = Linear(c.hidden_size, c.mlp_dim, rngs=rngs, dtype=dtype)
        self.up = Linear(c.hidden_size, c.mlp_dim, rngs=rngs, dtype=dtype)
        self.down = Linear(c.mlp_dim, c.hidden_size, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return checkpoint_name(self.down(constrain(inner, BATCH, None, "tensor")), KEPT[1])


class Block(nnx.Module):
    """x + gate * norm(attention(norm(x) * (1 + scale))), then the same around the MLP.

    The modulated kind takes scales and gates from the time embedding (order: scale and gate of the attention, scale
    and gate of the MLP; gates go through tanh; there are no shifts). The plain kind has neither.
    """

    def __init__(self, c: OmniGen2Config, *, modulated: bool, rngs: nnx.Rngs, dtype=jnp.float32):
        dim = c.hidden_size
        self.modulation = (
            Linear(c.time_dim, (4, dim), bias=True, rngs=rngs, dtype=dtype) if modulated else nnx.data(None)
        )
        self.attn, self.mlp = Attention(c, rngs=rngs, dtype=dtype), SwiGLU(c, rngs=rngs, dtype=dtype)
        self.norm1, self.norm2 = (RMSNorm(dim, c.norm_eps, dtype=dtype) for _ in range(2))
        self.mlp_norm1, self.mlp_norm2 = (RMSNorm(dim, c.norm_eps, dtype=dtype) for _ in range(2))

    def __call__(
        self, x: jax.Array, segments: jax.Array, phase: jax.Array, time: jax.Array | None = None, copies: int = 1
    ) -> jax.Array:
        """x [B * copies, T, D]; `time` [B, time_dim] after its SiLU serves `copies` consecutive rows each."""
        x = constrain(x, BATCH, "tensor", None)
        if self.modulation is None:
            x = x + self.norm2(self.attn(self.norm1(x), segments, phase))
            return x + self.mlp_norm2(self.mlp(self.mlp_norm1(x)))
        mod = jnp.repeat(self.modulation(time), copies, axis=0)[:, :, None]  # B*copies 4 1 D
        scale_attn, gate_attn, scale_mlp, gate_mlp = (mod[:, i] for i in range(4))
        x = x + jnp.tanh(gate_attn) * self.norm2(self.attn(self.norm1(x) * (1 + scale_attn), segments, phase))
        x = constrain(x, BATCH, "tensor", None)
        return x + jnp.tanh(gate_mlp) * self.mlp_norm2(self.mlp(self.mlp_norm1(x) * (1 + scale_mlp)))
