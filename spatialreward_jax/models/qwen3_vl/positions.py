"""Host side of Qwen3-VL: everything that depends on image sizes, in numpy, padded into buckets."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import struct

from spatialreward_jax.errors import InputError

Grid = tuple[int, int]
"""(rows, columns) of an image in patches, before merging."""


@struct.dataclass
class VisionGrid:
    """Where the patches of I images lie: a row of P patches each, in merge order (one 2 x 2 square after another)."""

    corners: jax.Array
    """int32 [I, P, 4], rows of the position table around each patch."""
    weights: jax.Array
    """float32 [I, P, 4], bilinear weights of these, summing to 1; 0 on padding."""
    coords: jax.Array
    """int32 [I, P, 2], (row, column) of each patch in its image."""
    valid: jax.Array
    """bool [I, P], False on padding."""


@struct.dataclass
class Prompt:
    """B right-padded prompts of T tokens."""

    tokens: jax.Array
    """int32 [B, T], 0 on padding."""
    image_index: jax.Array
    """int32 [B, T], the feature (a row of the flattened [I * P / merge^2]) that stands at a token, -1 for text."""
    positions: jax.Array
    """int32 [3, B, T], rotary positions in time, row and column."""
    length: jax.Array
    """int32 [B], real tokens."""
    delta: jax.Array
    """int32 [B], rotary position of the token after the prompt minus `length`."""


def vision_grid(
    grids: Sequence[Grid], patches: int, *, side: int, merge: int = 2, rows: int | None = None
) -> VisionGrid:
    """Where the patches of images lie.

    Args:
      grids: of the images.
      patches: P, to which every image is padded.
      side: of the position table; its corners are the images' corners.
      merge: side of a merged square.
      rows: I, filled up with empty rows; by default one row per image.

    Raises:
      InputError: there are more images than I, or one has more than P patches or sides that are no multiple of `merge`.
    """
    if rows is not None and len(grids) > rows:
        raise InputError(f"{len(grids)} images are more than the {rows} of their bucket")
    shape = (rows or len(grids), patches)
    corners, weights = np.zeros((*shape, 4), np.int32), np.zeros((*shape, 4), np.float32)
    coords, valid = np.zeros((*shape, 2), np.int32), np.zeros(shape, bool)
    for i, (height, width) in enumerate(grids):
        if height % merge or width % merge or min(height, width) < merge:
            raise InputError(f"image grid {height} x {width}: sides must be multiples of {merge} patches")
        count = height * width
        if count > patches:
            raise InputError(f"image grid {height} x {width} has {count} patches, more than its bucket of {patches}")
        coords[i, :count], valid[i, :count] = merge_order(height, width, merge), True
        corners[i, :count], weights[i, :count] = _bilinear(coords[i, :count], (height, width), side)
    return VisionGrid(corners, weights, coords, valid)


def merge_order(rows: int, cols: int, merge: int = 2) -> np.ndarray:
    """int32 [rows * cols, 2]: (row, column) of the patches in the order in which the processor flattens them."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), axis=-1)
    grid = grid.reshape(rows // merge, merge, cols // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, 2).astype(np.int32)


def _bilinear(coords, grid, side):
    """Rows of the table [side * side] and weights for each patch, both [n, 4]: corners aligned, as in torch."""
    rows, weights = [], []
    for axis in range(2):
        where = coords[:, axis] * ((side - 1) / max(grid[axis] - 1, 1))
        low = np.minimum(np.floor(where).astype(np.int64), side - 1)
        rows.append(np.stack([low, np.minimum(low + 1, side - 1)], axis=-1))
        weights.append(np.stack([1 - (where - low), where - low], axis=-1))
    corners = rows[0][:, :, None] * side + rows[1][:, None, :]
    return corners.reshape(-1, 4), (weights[0][:, :, None] * weights[1][:, None, :]).reshape(-1, 4)


def pack_images(
    images: Sequence[np.ndarray],
    grids: Sequence[Grid],
    patches: int,
    *,
    side: int,
    merge: int = 2,
    rows: int | None = None,
) -> tuple[np.ndarray, VisionGrid]:
    """Flattened images, each [height * width, C] -> (patches [I, P, C] in their dtype, grid); see `vision_grid`.

    Raises:
      InputError: an image does not have the patches of its grid, or does not fit.
    """
    grid = vision_grid(grids, patches, side=side, merge=merge, rows=rows)
    packed = np.zeros((*grid.valid.shape, images[0].shape[-1]), images[0].dtype)
    for i, (image, (height, width)) in enumerate(zip(images, grids, strict=True)):
        if len(image) != height * width:
            raise InputError(f"image has {len(image)} patches, its grid {height} x {width} wants {height * width}")
        packed[i, : len(image)] = image
    return packed, grid


def mrope_positions(is_image: np.ndarray, grids: Sequence[Grid], merge: int = 2) -> tuple[np.ndarray, int]:
    """Rotary positions of one prompt: text counts on all three axes, an image spans its rows and columns.

    Args:
      is_image: bool [T], True where a merged image patch stands.
      grids: of the prompt's images in their order.
      merge: side of a merged square.

    Returns:
      int32 [3, T] and the position of the next token minus T (`transformers` calls it the rope delta).

    Raises:
      InputError: the image tokens are not those of the grids.
    """
    is_image = np.asarray(is_image, bool)
    wanted = sum(rows * cols // merge**2 for rows, cols in grids)
    if int(is_image.sum()) != wanted:
        raise InputError(f"the prompt has {int(is_image.sum())} image tokens, its {len(grids)} images make {wanted}")
    positions = np.zeros((3, len(is_image)), np.int32)
    at, position, images = 0, 0, iter(grids)
    while at < len(is_image):
        if not is_image[at]:
            positions[:, at] = position
            at, position = at + 1, position + 1
            continue
        rows, cols = (s // merge for s in next(images))
        count = rows * cols
        if not is_image[at : at + count].all():
            raise InputError(f"text stands inside the {count} tokens of an image")
        inside = np.arange(count)
        positions[:, at : at + count] = position + np.stack([0 * inside, inside // cols, inside % cols])
        at, position = at + count, position + max(rows, cols)
    return positions, position - len(is_image)


def pack_prompts(
    prompts: Sequence[Sequence[int]],
    images: Sequence[Sequence[int]],
    grids: Sequence[Grid],
    *,
    length: int,
    patches: int,
    image_token: int,
    merge: int = 2,
) -> Prompt:
    """Right-pads tokenised prompts to `length` = T and finds their features and positions.

    Args:
      prompts: token ids, with `image_token` once per merged patch.
      images: for each prompt the images that it shows, in order, as indices into `grids`; prompts may share images.
      grids: of the I images.
      length: T.
      patches: P, the patch bucket of the vision rows.
      image_token: id of the image token.
      merge: side of a merged square.

    Raises:
      InputError: a prompt is longer than T, or its image tokens are not those of its images.
    """
    shape = (len(prompts), length)
    tokens, index = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    positions, delta = np.zeros((3, *shape), np.int32), np.zeros(len(prompts), np.int32)
    per_image = patches // merge**2
    for b, (prompt, shown) in enumerate(zip(prompts, images, strict=True)):
        count = len(prompt)
        if count > length:
            raise InputError(f"prompt {b} has {count} tokens, more than the {length} of its bucket")
        tokens[b, :count] = prompt
        is_image = tokens[b, :count] == image_token
        sizes = [grids[i] for i in shown]
        positions[:, b, :count], delta[b] = mrope_positions(is_image, sizes, merge)
        features = [i * per_image + np.arange(r * c // merge**2) for i, (r, c) in zip(shown, sizes)]
        if features:
            index[b, :count][is_image] = np.concatenate(features)
    return Prompt(tokens, index, positions, np.array([len(p) for p in prompts], np.int32), delta)


def cut_prompts(prompt: Prompt, start: Sequence[int], stop: Sequence[int], length: int) -> Prompt:
    """Tokens start..stop [B] of each prompt, right-padded to `length`; `delta` stays that of the whole prompts.

    Raises:
      InputError: a stretch is longer than `length`.
    """
    batch = len(prompt.length)
    tokens, index = np.zeros((batch, length), np.int32), np.full((batch, length), -1, np.int32)
    positions = np.zeros((3, batch, length), np.int32)
    for b, (first, last) in enumerate(zip(start, stop, strict=True)):
        if last - first > length:
            raise InputError(f"prompt {b}: a stretch of {last - first} tokens is longer than its bucket of {length}")
        here = slice(0, last - first)
        tokens[b, here], index[b, here] = prompt.tokens[b, first:last], prompt.image_index[b, first:last]
        positions[:, b, here] = prompt.positions[:, b, first:last]
    return Prompt(tokens, index, positions, np.subtract(stop, start).astype(np.int32), prompt.delta)
