"""Qwen3-VL: images and text in, log-probabilities of the next token out.

The full forward (`__call__`) serves training, `prefill` and `extend` serve decoding; all share the same layers. Prompts
are right-padded; `positions.py` makes on the host whatever depends on image sizes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels.attention import KEPT, attention
from spatialreward_jax.mesh import BATCH, constrain
from spatialreward_jax.models.layers import Embedding, RMSNorm, scan_blocks, stack_blocks
from spatialreward_jax.models.qwen3_vl.cache import KVCache, admit_layer, empty_cache, extend_layer
from spatialreward_jax.models.qwen3_vl.config import Qwen3VLConfig
from spatialreward_jax.models.qwen3_vl.positions import Prompt, VisionGrid
from spatialreward_jax.models.qwen3_vl.vision import VisionFeatures, VisionTower
from spatialreward_jax.models.qwen_layers import Attend, DecoderBlock, inverse_frequencies


def mrope_axes(section: tuple[int, int, int], frequencies: int) -> np.ndarray:
    """int [frequencies]: the axis (0 time, 1 row, 2 column) whose position turns each rotary frequency, interleaved."""
    j = np.arange(frequencies)
    axes = np.zeros(frequencies, np.int32)
    for axis in (1, 2):
        axes[(j % 3 == axis) & (j < 3 * section[axis])] = axis
    return axes


class Qwen3VL(nnx.Module):
    """The whole net; activations in `dtype`, whatever the dtype of the parameters."""

    def __init__(self, config: Qwen3VLConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        c = config.text
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.embed = Embedding(c.vocab, c.dim, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: DecoderBlock(c, rngs=rngs), c.layers, rngs)
        self.norm = RMSNorm(c.dim, c.eps)
        self.head = None if config.tied else Embedding(c.vocab, c.dim, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, image_index: jax.Array, positions: jax.Array, features: VisionFeatures | None
    ) -> jax.Array:
        """Full causal forward, arguments as in `Prompt` -> hidden [B, T, D] after the final norm; noise on padding."""
        causal = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        attend = lambda q, k, v: (attention(q, k, v, positions=causal), None)
        return self.read(tokens, image_index, positions, features, attend)[0]

    def read(
        self,
        tokens: jax.Array,
        image_index: jax.Array,
        positions: jax.Array,
        features: VisionFeatures | None,
        attend: Attend,
    ) -> tuple[jax.Array, Any]:
        """The full forward with an `attend` of the caller's -> hidden, what `attend` hands out stacked over layers."""
        x, deep = self.inputs(tokens, image_index, features)
        angles = self.angles(positions)

        def block(block: DecoderBlock, x: jax.Array, layer: jax.Array) -> tuple[jax.Array, Any]:
            x, out = block(x, angles, attend)
            return constrain(_add_deep(x, deep, layer), BATCH), out

        x, out = scan_blocks(self.blocks, block, x, jnp.arange(self.config.text.layers), keep=(KEPT,))
        return self.norm(x), out

    def images(self, patches: jax.Array, grid: VisionGrid) -> VisionFeatures:
        """Features of the images [I, P, C], see `VisionTower`."""
        return self.vision(patches.astype(self.dtype), grid)

    def inputs(
        self, tokens: jax.Array, image_index: jax.Array | None, features: VisionFeatures | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decoder inputs [B, T, D] and what DeepStack adds to the outputs of its first layers [K, B, T, D] or None.

        Without features the tokens are all text and `image_index` is not read.
        """
        x = self.embed(tokens).astype(self.dtype)
        if features is None:
            return constrain(x, BATCH), None
        at, index = (image_index >= 0)[..., None], jnp.maximum(image_index, 0)
        main = features.main.reshape(-1, x.shape[-1]).astype(self.dtype)
        deep = features.deep.reshape(len(features.deep), *main.shape).astype(self.dtype)
        x = jnp.where(at, main[index], x)
        return constrain(x, BATCH), constrain(jnp.where(at, deep[:, index], 0), None, BATCH)

    def angles(self, positions: jax.Array) -> jax.Array:
        """Rotary positions int32 [3, B, T] -> float32 angles [B, T, H / 2], each frequency turned by its own axis."""
        frequencies = inverse_frequencies(self.config.text.head_dim, self.config.text.theta)
        axes = mrope_axes(self.config.mrope_section, len(frequencies))
        return jnp.moveaxis(positions[axes], 0, -1).astype(jnp.float32) * frequencies

    def prefill(self, prompt: Prompt, features: VisionFeatures | None, slots: int) -> tuple[jax.Array, KVCache]:
        """Reads prompts into a new cache of `slots` >= T -> hidden of each row's last token [B, D], cache.

        Raises:
          InputError: the prompts do not fit into the slots.
        """
        batch, length = prompt.tokens.shape
        if slots < length:
            raise InputError(
                f"a cache of {slots} slots is too small for prompts padded to {length} tokens: ask for more"
            )
        return self.admit(prompt, features, empty_cache(self.config.text, batch, slots, self.dtype), jnp.arange(batch))

    def admit(
        self,
        prompt: Prompt,
        features: VisionFeatures | None,
        cache: KVCache,
        rows: jax.Array,
        before: tuple[KVCache, jax.Array] | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Reads N prompts into rows of a cache, over what stood there -> hidden of their last tokens [N, D], cache.

        Args:
          prompt: N prompts, or what comes behind their beginnings.
          features: of their images.
          cache: of B rows; donate it.
          rows: int32 [N]; a prompt with a row beyond B is dropped.
          before: the cache of some beginnings, read by `prefill`, and int32 [N], the one that each prompt goes on from.
        """
        x, deep = self.inputs(prompt.tokens, prompt.image_index, features)
        start = jnp.zeros_like(prompt.length) if before is None else before[0].length[before[1]]

        def attend(k, v, layer):
            known = before and tuple(x[layer][before[1]] for x in (before[0].k, before[0].v))
            return admit_layer(k, v, layer, rows, start, known)

        x, k, v = self._cached(x, deep, prompt.positions, cache, attend)
        last = jnp.take_along_axis(x, (prompt.length - 1)[:, None, None], axis=1)[:, 0]
        put = lambda to, new: to.at[rows].set(new, mode="drop")
        length, delta = put(cache.length, start + prompt.length), put(cache.delta, prompt.delta)
        return self.norm(last), KVCache(k, v, length, delta)

    def extend(self, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Reads T more text tokens [B, T] of each row, one after another -> hidden [B, T, D], cache."""
        x, _ = self.inputs(tokens, None, None)
        ahead = (cache.length + cache.delta)[:, None] + jnp.arange(tokens.shape[1])

        def attend(k, v, layer):
            return extend_layer(k, v, layer, cache.length)

        x, k, v = self._cached(x, None, jnp.broadcast_to(ahead, (3, *ahead.shape)), cache, attend)
        return self.norm(x), cache.replace(k=k, v=v, length=cache.length + tokens.shape[1])

    def next_logits(self, token: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Reads one token of each row [B] -> float32 logits of the next [B, V], cache: a step of decoding."""
        hidden, cache = self.extend(token[:, None], cache)
        return self.logits(hidden[:, 0]), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden [..., D] after the final norm -> float32 [..., V]."""
        table = (self.embed if self.head is None else self.head).table[...]
        return jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def log_probs(self, hidden: jax.Array, targets: jax.Array, *, chunk: int = 256) -> jax.Array:
        """float32 [B, T] of targets [B, T] under hidden [B, T, D]; holds the logits of `chunk` positions at a time."""
        return self.judged(hidden, targets, chunk=chunk)[0]

    def judged(self, hidden: jax.Array, targets: jax.Array, *, chunk: int = 256) -> tuple[jax.Array, jax.Array]:
        """As `log_probs`, and with it bool [B, T]: whether the target is the likeliest token."""
        t = hidden.shape[1]
        count = -(-t // chunk)

        def cut(x):
            x = jnp.pad(x, [(0, 0), (0, count * chunk - t)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

        @jax.checkpoint
        def part(xs):
            hidden, targets = xs
            logits = self.logits(hidden)
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1), chosen >= logits.max(axis=-1)

        if count == 1:
            return part((hidden, targets))
        join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :t]
        return jax.tree.map(join, jax.lax.map(part, (cut(hidden), cut(targets))))

    def _cached(self, x, deep, positions, cache, attend):
        angles = self.angles(positions)

        def block(block, carry, layer):
            x, k, v = carry
            x, (k, v) = block(x, angles, attend(k, v, layer))
            return (constrain(_add_deep(x, deep, layer), BATCH), k, v), None

        layers = jnp.arange(self.config.text.layers)
        return scan_blocks(self.blocks, block, (x, cache.k, cache.v), layers, remat=False)[0]


def _add_deep(x, deep, layer):
    """x plus the DeepStack feature of this layer, if it has one."""
    if deep is None or not len(deep):
        return x
    mine = jax.lax.dynamic_index_in_dim(deep, jnp.minimum(layer, len(deep) - 1), keepdims=False)
    return x + jnp.where(layer < len(deep), mine, 0)
