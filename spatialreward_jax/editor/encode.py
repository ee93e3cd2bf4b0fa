"""Images and texts to the conditioning of the three guidance branches, and latents back to images."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialreward_jax.data.buckets import Buckets, group_by_shape, pad_batch
from spatialreward_jax.editor import prompts
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Branches
from spatialreward_jax.mesh import on_host, place_batch
from spatialreward_jax.models.autoencoder_kl import sample_posterior
from spatialreward_jax.models.omnigen2 import Conditioning, pack_references, unpack

TOKENS = Buckets((*range(16, 256, 16), *range(256, 1024, 64), *range(1024, 16384 + 1, 512)))
"""Lengths to which images are padded, in patches: 1024 is 512 x 512 pixels."""

PIXELS = 2**20
"""Pixels that a device's autoencoder takes at a time: in float32, the widest layers take 1 KiB of memory a pixel."""

POSTERIOR = 0x7E5
"""Folded into a request's key for the draw of its reference latents, apart from the sampler's steps."""


class Encoded(NamedTuple):
    """P requests ready to sample.

    Attributes:
      branches: conditioning of each guidance branch, every array leading with P.
      mask: [P, T] bool, real tokens of the targets.
      latent_sizes: (height, width) of each target in latent positions.
    """

    branches: Branches
    mask: jax.Array
    latent_sizes: tuple[tuple[int, int], ...]


def encode(
    nets: EditorNets,
    instructions: Sequence[str],
    sources: Sequence[Sequence[np.ndarray]],
    targets: Sequence[tuple[int, int]],
    *,
    negative: str,
    keys: jax.Array,
    max_tokens: int = prompts.MAX_TOKENS,
) -> Encoded:
    """Encodes P requests.

    Args:
      nets: the editor.
      instructions: P texts.
      sources: for each request its source images, uint8 [h, w, 3] with sides that are multiples of `nets.multiple`.
      targets: for each request (height, width) in pixels of the edit, likewise.
      negative: a name of `prompts.NEGATIVES`.
      keys: [P] random keys; the reference latents are samples of the posterior, drawn once here.
      max_tokens: longer instructions are cut.

    Raises:
      InputError: an empty instruction, an unknown negative, too many references, or an image that is too large.
    """
    text = encode_text(nets, prompts.edit_turns(instructions), max_tokens)
    negative_text = encode_text(nets, [prompts.negative_turn(negative)])
    refs = encode_images(nets, sources, keys)
    channels, patch = nets.transformer.config.in_channels, nets.transformer.config.patch_size
    longest = max((x.shape[0] * x.shape[1] // patch**2 for row in refs for x in row), default=0)
    tokens = TOKENS.fit(longest, "reference image") if longest else 0
    packed, sizes = pack_references(refs, channels=channels, tokens=tokens, patch=patch)
    rows = np.array([(h // nets.multiple, w // nets.multiple) for h, w in targets], np.int32)
    check_positions(nets, np.concatenate([rows, sizes.reshape(-1, 2)]))
    place = functools.partial(place_batch, nets.mesh)
    full = Conditioning(*text, place(packed), place(sizes), place(rows))
    repeated = [jnp.broadcast_to(x, (len(instructions), *x.shape[1:])) for x in negative_text]
    ref = full.with_text(*repeated)
    mask = np.arange(TOKENS.fit(int(rows.prod(1).max()), "edited image")) < rows.prod(1)[:, None]
    latent_sizes = tuple((int(h * patch), int(w * patch)) for h, w in rows)
    return Encoded(Branches(full, ref, ref.without_references()), place(mask), latent_sizes)


def check_positions(nets: EditorNets, sizes: np.ndarray) -> None:
    """Raises InputError where a size (rows and columns [N, 2] of patches) has no rotary positions."""
    most, there = sizes.max(0), nets.transformer.config.axes_lens[1:]
    if (most > there).any():
        raise InputError(
            f"images of up to {most[0]} x {most[1]} patches of {nets.multiple} pixels, the editor has positions for "
            f"{there[0]} x {there[1]}: use smaller images"
        )


def encode_text(
    nets: EditorNets, turns: Sequence[tuple[str, str]], max_tokens: int = prompts.MAX_TOKENS
) -> tuple[jax.Array, jax.Array]:
    """(system, user) turns -> features [B, L, D] and mask bool [B, L], L a bucket.

    Raises:
      InputError: more tokens than the transformer has rotary positions for.
    """
    tokens, mask = prompts.tokenize(nets.tokenizer, turns, max_tokens=max_tokens)
    longest, positions = int(mask.sum(1).max()), min(nets.transformer.config.axes_lens)
    if longest > positions:
        raise InputError(f"a text of {longest} tokens, the editor has {positions} positions: shorten the instruction")
    tokens, mask = place_batch(nets.mesh, tokens), place_batch(nets.mesh, mask)
    with jax.set_mesh(nets.mesh):
        return text_features(nets.text.graph, nets.text.params, tokens, mask), mask


@functools.partial(jax.jit, static_argnums=0)
def text_features(graph: nnx.GraphDef, params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """The text tower's program: int32 [B, L] and bool [B, L] -> [B, L, D], see `models.qwen2_5_text`."""
    return nnx.merge(graph, params)(tokens, mask)


def encode_images(nets: EditorNets, sources: Sequence[Sequence[np.ndarray]], keys: jax.Array) -> list[list[np.ndarray]]:
    """Posterior samples in the editor's latent space, float32 [h, w, C] for every source image.

    The autoencoder sees whole images, so that images of one size run together (see `image_batch`).
    """
    flat = [(row, slot, image) for row, images in enumerate(sources) for slot, image in enumerate(images)]
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, POSTERIOR)
    out: list[list] = [[None] * len(images) for images in sources]
    for shape, indices in _image_batches(nets.mesh, [image.shape[:2] for *_, image in flat]):
        rows, slots, images = zip(*(flat[i] for i in indices))
        count = image_batch(nets.mesh, shape, len(images))
        own = jax.vmap(jax.random.fold_in)(keys[pad_batch(rows, count)], pad_batch(slots, count))
        batch = place_batch(nets.mesh, pad_batch(images, count))
        with jax.set_mesh(nets.mesh):
            latents = on_host(latents_of_images(nets.vae.graph, nets.vae.params, batch, own))
        for row, slot, latent in zip(rows, slots, latents):
            out[row][slot] = latent
    return out


@functools.partial(jax.jit, static_argnums=0)
def latents_of_images(graph: nnx.GraphDef, params: dict, images: jax.Array, keys: jax.Array) -> jax.Array:
    """The autoencoder's program: uint8 [B, H, W, 3], keys [B] -> posterior samples float32 [B, H / 8, W / 8, C]."""
    vae = nnx.merge(graph, params)
    mean, logvar = vae.encode(images.astype(jnp.float32) / 127.5 - 1)
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    return vae.to_latent(sample_posterior(mean, logvar, noise))


def decode(nets: EditorNets, latents: jax.Array, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Packed latents [B, T, C] and (height, width) in latent positions -> uint8 images [8 h, 8 w, 3]."""
    patch, scale = nets.transformer.config.patch_size, nets.vae.config.downscale
    latents = on_host(latents).astype(np.float32, copy=False)
    out: list = [None] * len(sizes)
    for shape, indices in _image_batches(nets.mesh, [(height * scale, width * scale) for height, width in sizes]):
        rows = unpack(latents[indices], shape[0] // nets.multiple, shape[1] // nets.multiple, patch)
        batch = place_batch(nets.mesh, pad_batch(rows, image_batch(nets.mesh, shape, len(indices))))
        with jax.set_mesh(nets.mesh):
            images = on_host(images_of_latents(nets.vae.graph, nets.vae.params, batch))
        for index, image in zip(indices, images):
            out[index] = image
    return out


@functools.partial(jax.jit, static_argnums=0)
def images_of_latents(graph: nnx.GraphDef, params: dict, latents: jax.Array) -> jax.Array:
    """The autoencoder's other program: float32 [B, H / 8, W / 8, C] -> uint8 [B, H, W, 3]."""
    vae = nnx.merge(graph, params)
    image = vae.decode(vae.from_latent(latents)) / 2 + 0.5
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


def image_batch(mesh: jax.sharding.Mesh, shape: tuple[int, int], count: int) -> int:
    """How many of `count` images (height, width) the autoencoder takes at a time, padding included: a power of two."""
    most = max(1, PIXELS // (shape[0] * shape[1])) * mesh.shape["data"] * mesh.shape["fsdp"]
    return min(1 << (count - 1).bit_length(), 1 << (most.bit_length() - 1))


def _image_batches(mesh: jax.sharding.Mesh, shapes: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], list]]:
    """((height, width), indices of images of that size), each as many as fit."""
    batches = []
    for shape, indices in group_by_shape(list(shapes)).items():
        size = image_batch(mesh, shape, len(indices))
        batches += [(shape, indices[at : at + size]) for at in range(0, len(indices), size)]
    return batches
