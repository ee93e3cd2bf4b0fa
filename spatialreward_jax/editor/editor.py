"""`Editor`: edits images by instruction."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.editor.encode import Encoded, decode, encode
from spatialreward_jax.editor.nets import EditorNets, load_nets
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import SamplerPreset, StepPlan, key_noise, rollout, sampler_preset, time_grid
from spatialreward_jax.io.images import ImageLike, editor_size, read_image, resize, resize_for_editor
from spatialreward_jax.mesh import place_batch


@dataclasses.dataclass
class Editor:
    """An instruction-driven image editor.

    Attributes:
      nets: its nets, on one mesh.
      max_pixels: larger images are reduced to this many pixels before they are edited.
      max_side: likewise, for the longer side.
      max_samples: edits computed at a time.
    """

    nets: EditorNets
    max_pixels: int = 1024 * 1024
    max_side: int = 2048
    max_samples: int = 8

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        *,
        adapter: str | pathlib.Path | None = None,
        alpha: float | None = None,
        dtype: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        max_pixels: int = 1024 * 1024,
    ) -> "Editor":
        """Loads an OmniGen2 folder, or "embedded"; see `load_nets` for the arguments and errors."""
        return cls(load_nets(path, adapter=adapter, alpha=alpha, dtype=dtype, mesh=mesh), max_pixels)

    def edit(
        self,
        source: ImageLike | Sequence[ImageLike],
        instruction: str,
        *,
        num_samples: int = 1,
        seed: int = 0,
        preset: str | SamplerPreset = "omnigen2",
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """Edits one image.

        Args:
          source: the image (path, bytes, PIL image or uint8 array), or up to 5 of them.
          instruction: what to change.
          num_samples: how many edits.
          seed: edit number i depends on (seed, i) alone.
          preset: sampler settings, by name or given.
          size: (height, width) of the result; by default that of the source, needed with several.

        Returns:
          `num_samples` images, uint8 [H, W, 3].

        Raises:
          InputError: an unreadable image, an empty instruction, an unknown preset, or a bad number.
        """
        if num_samples < 1:
            raise InputError(f"num_samples={num_samples}: use at least 1")
        preset = sampler_preset(preset) if isinstance(preset, str) else preset
        many = isinstance(source, list | tuple)
        originals = [read_image(image) for image in (source if many else [source])]
        sources, target, final = self._sizes(originals, size)
        root = jax.random.key(seed)
        encoded = encode(self.nets, [instruction], [sources], [target], negative=preset.negative, keys=root[None])
        images: list[np.ndarray] = []
        group = min(self.max_samples, num_samples)  # the last group is filled up, so that one program serves all
        for first in range(0, num_samples, group):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(first, first + group))
            latents = self.sample(encoded, keys[None], preset)
            images += decode(self.nets, latents[0], encoded.latent_sizes * group)
        return [resize(image, *final) for image in images[:num_samples]]

    def _sizes(self, originals, size):
        """Resized sources, the edit's size in the editor, and the size of the result."""
        multiple, limits = self.nets.multiple, dict(max_pixels=self.max_pixels, max_side=self.max_side)
        sources = [resize_for_editor(image, multiple=multiple, **limits) for image in originals]
        if len(originals) == 1 and size is None:
            return sources, sources[0].shape[:2], originals[0].shape[:2]
        if size is None:
            raise InputError(f"{len(originals)} source images: give the result's size=(height, width)")
        return sources, editor_size(*size, multiple=multiple, **limits), size

    def sample(self, encoded: Encoded, keys: jax.Array, preset: SamplerPreset) -> jax.Array:
        """Samples [P, G] edits of P encoded requests: keys [P, G] -> latents float32 [P, G, T, C]."""
        sizes = np.array([h * w for h, w in encoded.latent_sizes])
        times = place_batch(self.nets.mesh, time_grid(sizes, preset.steps, preset.base))
        guidance = preset.guidance
        if not encoded.branches.full.refs.shape[1]:
            guidance = dataclasses.replace(guidance, image=1.0)
        plan = StepPlan(np.full(preset.steps, preset.coef, np.float32), np.zeros(0, np.int32))
        net = self.nets.transformer
        with jax.set_mesh(self.nets.mesh):
            return _sample(
                (net.graph, guidance, self.nets.dtype),
                (self.nets.adapters, net.params),
                encoded.branches,
                encoded.mask,
                times,
                keys,
                plan,
            )


@functools.partial(jax.jit, static_argnums=0)
def _sample(static, params, branches, mask, times, keys, plan):
    graphs, guidance, dtype = static
    tokens, channels = mask.shape[-1], branches.full.refs.shape[-1]
    velocity = velocity_fn(graphs, *params, dtype)
    noise = key_noise(keys, tokens, channels)
    return rollout(velocity, branches, noise(-1), times, mask, guidance=guidance, plan=plan, noise=noise)[0]
