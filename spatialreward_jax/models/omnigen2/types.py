"""What the editor's velocity is conditioned on."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Conditioning:
    """Everything but the noisy target and the time, for B samples padded to common sizes.

    Masks of images follow from their sizes, so nothing can disagree with them.

    Attributes:
      text: [B, Lt, Dt] features of the text tower, right-padded; values in the padding have no influence.
      text_mask: [B, Lt] bool, real tokens (a prefix of each row).
      refs: [B, R, Tr, C] packed reference latents, right-padded. R may be 0; absent references come last in a row.
      ref_sizes: [B, R, 2] int32 (rows, columns) in patches; (0, 0) marks an absent reference.
      target_size: [B, 2] int32 (rows, columns) in patches of the image to make.
    """

    text: jax.Array
    text_mask: jax.Array
    refs: jax.Array
    ref_sizes: jax.Array
    target_size: jax.Array

    @property
    def ref_mask(self) -> jax.Array:
        """bool [B, R, Tr], real tokens of the references."""
        return jnp.arange(self.refs.shape[2]) < jnp.prod(self.ref_sizes, axis=-1)[..., None]

    def target_mask(self, tokens: int) -> jax.Array:
        """bool [B, tokens], real tokens of a target that is padded to `tokens`."""
        return jnp.arange(tokens) < jnp.prod(self.target_size, axis=-1)[:, None]

    def without_references(self) -> "Conditioning":
        """The same request with no reference slots at all (R = 0): the branch costs nothing for them."""
        return self.replace(refs=self.refs[:, :0], ref_sizes=self.ref_sizes[:, :0])

    def with_text(self, text: jax.Array, text_mask: jax.Array) -> "Conditioning":
        """The same images under another text [B, Lt', Dt], for instance the negative prompt."""
        return self.replace(text=text, text_mask=text_mask)

    def repeat(self, times: int) -> "Conditioning":
        """Every sample `times` times in a row: [B, ...] -> [B * times, ...]."""
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), self)
