"""Image latents to padded token rows and back.

A token is one patch; its channels are ordered (row in patch, column in patch, latent channel), tokens run row by row.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.models.omnigen2.config import MAX_REFERENCES


def pack(latent: jax.Array, patch: int = 2) -> jax.Array:
    """[..., h, w, C] -> [..., h/patch * w/patch, patch * patch * C]; numpy in, numpy out.

    Raises:
      InputError: a side is no multiple of `patch`.
    """
    *lead, h, w, c = latent.shape
    if h % patch or w % patch:
        raise InputError(f"latent of {h} x {w} does not divide into patches of {patch}: use a multiple")
    cut = latent.reshape(*lead, h // patch, patch, w // patch, patch, c)
    return cut.swapaxes(-4, -3).reshape(*lead, (h // patch) * (w // patch), patch * patch * c)


def unpack(tokens: jax.Array, rows: int, columns: int, patch: int = 2) -> jax.Array:
    """Undoes `pack` on the first rows * columns tokens: [..., T, patch * patch * C] -> [..., h, w, C]."""
    *lead, _, c = tokens.shape
    cut = tokens[..., : rows * columns, :].reshape(*lead, rows, columns, patch, patch, c // patch**2)
    return cut.swapaxes(-4, -3).reshape(*lead, rows * patch, columns * patch, c // patch**2)


def pack_images(
    latents: Sequence[np.ndarray], *, tokens: int | None = None, patch: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Latents of mixed sizes, each [h, w, C] -> zero-padded tokens [B, T, patch * patch * C] and sizes int32 [B, 2].

    Args:
      latents: at least one.
      tokens: T, by default the longest image's.
      patch: side of a patch.

    Raises:
      InputError: an image has more than `tokens` patches.
    """
    packed = [pack(np.asarray(x), patch) for x in latents]
    length = max(x.shape[0] for x in packed) if tokens is None else tokens
    out = np.zeros((len(packed), length, packed[0].shape[1]), packed[0].dtype)
    for row, x in zip(out, packed):
        if x.shape[0] > length:
            raise InputError(f"an image has {x.shape[0]} patches, the bucket holds {length}: use a larger bucket")
        row[: x.shape[0]] = x
    return out, np.array([(x.shape[0] // patch, x.shape[1] // patch) for x in latents], np.int32)


def pack_references(
    references: Sequence[Sequence[np.ndarray]],
    *,
    channels: int,
    slots: int | None = None,
    tokens: int | None = None,
    patch: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's reference latents -> tokens [B, R, Tr, patch * patch * channels] and sizes int32 [B, R, 2].

    Args:
      references: for each sample, latents [h, w, channels]; none, one or several.
      channels: channels of a latent (needed where no sample has a reference).
      slots: R, by default the largest number of references of a sample.
      tokens: Tr, by default the longest reference's.
      patch: side of a patch.

    Raises:
      InputError: more references than `slots` or than the architecture knows, or one longer than `tokens`.
    """
    most = max((len(r) for r in references), default=0)
    slots = most if slots is None else slots
    if max(most, slots) > MAX_REFERENCES or most > slots:
        raise InputError(f"a sample has {most} references, want at most {min(slots, MAX_REFERENCES)}")
    flat = [x for sample in references for x in sample]
    if not flat:
        width = patch * patch * channels
        return np.zeros((len(references), slots, tokens or 0, width), np.float32), np.zeros(
            (len(references), slots, 2), np.int32
        )
    rows, flat_sizes = pack_images(flat, tokens=tokens, patch=patch)
    out = np.zeros((len(references), slots, *rows.shape[1:]), rows.dtype)
    sizes = np.zeros((len(references), slots, 2), np.int32)
    first = 0
    for i, sample in enumerate(references):
        out[i, : len(sample)] = rows[first : first + len(sample)]
        sizes[i, : len(sample)] = flat_sizes[first : first + len(sample)]
        first += len(sample)
    return out, sizes


def zero_padding(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """tokens [..., T, C] with 0 wherever mask [..., T] is False; also where the padding holds NaN."""
    return jnp.where(mask[..., None], tokens, jnp.zeros((), tokens.dtype))
