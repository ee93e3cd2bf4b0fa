"""The OmniGen2 transformer: the velocity of a packed image latent, given text and reference images."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.layers import LayerNorm, Linear, RMSNorm, scan_blocks, stack_blocks
from spatialreward_jax.models.omnigen2 import rope
from spatialreward_jax.models.omnigen2.blocks import KEPT, Block
from spatialreward_jax.models.omnigen2.config import MAX_REFERENCES, TIME_CHANNELS, OmniGen2Config
from spatialreward_jax.models.omnigen2.packing import zero_padding
from spatialreward_jax.models.omnigen2.types import Conditioning

FINAL_EPS = 1e-6


def timestep_sinusoid(t: jax.Array, scale: float) -> jax.Array:
    """t [B] in 0..1 -> float32 [B, 256], cosines first.

    Rounded as the reference rounds: at angles up to 1000 a last bit of a frequency, or another order of the two
    products, moves the result by 6e-5. So the exponents are float32, their exponential is correctly rounded, t *
    frequency comes first, and the barrier keeps XLA from folding the two factors into one.
    """
    half = TIME_CHANNELS // 2
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = jax.lax.optimization_barrier(t.astype(jnp.float32)[:, None] * frequency) * jnp.float32(scale)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedding(nnx.Module):
    """t [B] -> [B, time_dim] in the given dtype."""

    def __init__(self, c: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.scale = c.timestep_scale
        self.linear_1 = Linear(TIME_CHANNELS, c.time_dim, bias=True, rngs=rngs, dtype=dtype)
        self.linear_2 = Linear(c.time_dim, c.time_dim, bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, t: jax.Array, dtype) -> jax.Array:
        return self.linear_2(jax.nn.silu(self.linear_1(timestep_sinusoid(t, self.scale).astype(dtype))))


class CaptionEmbedding(nnx.Module):
    """Text features [B, Lt, Dt] -> [B, Lt, D]."""

    def __init__(self, c: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.norm = RMSNorm(c.text_feat_dim, c.norm_eps, dtype=dtype)
        self.linear = Linear(c.text_feat_dim, c.hidden_size, bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, text: jax.Array) -> jax.Array:
        return self.linear(self.norm(text))


class Head(nnx.Module):
    """Scaled LayerNorm and the projection to velocity tokens: x [B, T, D], time [B, time_dim] -> [B, T, C]."""

    def __init__(self, c: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.norm = LayerNorm(c.hidden_size, FINAL_EPS, affine=False)
        self.linear_1 = Linear(c.time_dim, c.hidden_size, bias=True, rngs=rngs, dtype=dtype)
        self.linear_2 = Linear(c.hidden_size, c.output_channels, bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        return self.linear_2(self.norm(x) * (1 + self.linear_1(time))[:, None])


class OmniGen2Transformer(nnx.Module):
    """Rectified-flow transformer over the joint sequence [text | references | target].

    Text and images first pass refiners of their own (each reference alone, as a row of its own); then all tokens of a
    sample see each other. Padding is never seen by a real token.
    """

    def __init__(self, config: OmniGen2Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        c, kinds = config, dict(rngs=rngs, dtype=dtype)
        self.config = config
        self.x_embedder = Linear(c.token_channels, c.hidden_size, bias=True, **kinds)
        self.ref_embedder = Linear(c.token_channels, c.hidden_size, bias=True, **kinds)
        self.index_embedding = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (MAX_REFERENCES, c.hidden_size), dtype)
        )
        self.time = TimeEmbedding(c, **kinds)
        self.caption = CaptionEmbedding(c, **kinds)
        refiner = lambda modulated: stack_blocks(
            lambda r: Block(c, modulated=modulated, rngs=r, dtype=dtype), c.num_refiner_layers, rngs
        )
        self.context_refiner, self.noise_refiner, self.ref_refiner = refiner(False), refiner(True), refiner(True)
        self.layers = stack_blocks(lambda r: Block(c, modulated=True, rngs=r, dtype=dtype), c.num_layers, rngs)
        self.head = Head(c, **kinds)

    def __call__(self, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        """Velocity dx/dt (time 0 is noise, 1 is data).

        Args:
          x: [B, T, C] packed noisy targets, right-padded; its dtype is the dtype of the computation.
          t: [B] float32 in 0..1.
          cond: text, references and sizes; at most 5 references.

        Returns:
          [B, T, C] in x's dtype, 0 in the padding.
        """
        tokens, dtype = x.shape[1], x.dtype
        slots, ref_tokens = cond.refs.shape[1:3]
        if slots > MAX_REFERENCES:
            raise ValueError(f"{slots} reference slots: the index embedding has {MAX_REFERENCES}")
        masks = rope.masks(cond, tokens)
        side = min(ref_tokens, max(self.config.axes_lens[1:]))
        phase = rope.phases(self.config, rope.position_ids(cond, tokens), slots * side)
        time = jax.nn.silu(self.time(t, dtype))  # B time_dim; every use begins with this SiLU
        parts = rope.Parts(
            self._refine_text(cond.text.astype(dtype), masks.text, phase.text),
            self._refine_refs(cond.refs.astype(dtype), masks.refs, phase.refs, time),
            self._refine_target(x, masks.target, phase.target, time),
        )
        segments, joint_phase = masks.joint().astype(jnp.int32), phase.joint()

        def layer(block, h, _):
            return block(h, segments, joint_phase, time), None

        h, _ = scan_blocks(self.layers, layer, constrain(parts.joint(), BATCH, "tensor", None), keep=KEPT)
        return zero_padding(self.head(h[:, -tokens:], time), masks.target)

    def _refine_text(self, text, mask, phase):
        segments = mask.astype(jnp.int32)
        call = lambda block, h, _: (block(h, segments, phase), None)
        return scan_blocks(self.context_refiner, call, self.caption(text), keep=KEPT)[0]

    def _refine_target(self, x, mask, phase, time):
        segments = mask.astype(jnp.int32)
        call = lambda block, h, _: (block(h, segments, phase, time), None)
        return scan_blocks(self.noise_refiner, call, self.x_embedder(x), keep=KEPT)[0]

    def _refine_refs(self, refs, mask, phase, time):
        """[B, R, Tr, C] -> [B, R, Tr, D]; the scan runs over B * R rows, so that no reference sees another."""
        b, r, length, _ = refs.shape
        if r * length == 0:
            return jnp.zeros((b, r, length, self.config.hidden_size), refs.dtype)
        h = self.ref_embedder(refs) + self.index_embedding[...][:r, None].astype(refs.dtype)
        rows = lambda x: x.reshape(b * r, *x.shape[2:])
        segments, phase = rows(mask).astype(jnp.int32), rows(phase)
        call = lambda block, h, _: (block(h, segments, phase, time, copies=r), None)
        return scan_blocks(self.ref_refiner, call, rows(h), keep=KEPT)[0].reshape(b, r, length, -1)
