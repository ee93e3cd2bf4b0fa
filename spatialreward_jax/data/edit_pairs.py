"""Edits with their results, for supervised training of the editor: the RL jsonl layout plus `output_image`, and
EditWorld without files."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.editworld import render, sample_edit
from spatialreward_jax.data.editworld.vocabulary import SIDES
from spatialreward_jax.data.requests import EditRequest, read_requests
from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images


@dataclasses.dataclass(frozen=True)
class EditPair:
    """instruction; sources: uint8 [h, w, 3] each, at the editor's size; target: uint8 [H, W, 3], likewise; key: 31-bit
    number of the row for random keys."""

    instruction: str
    sources: tuple[np.ndarray, ...]
    target: np.ndarray
    key: int


@dataclasses.dataclass(frozen=True)
class PairSize:
    """How images are resized: aspect kept, never upscaled, sides floored to `multiple`.

    Attributes:
        input_pixels: most pixels of a source image, by the number of sources (the last entry serves more).
        output_pixels: most pixels of the target. max_side: of any image.
    """

    input_pixels: tuple[int, ...]
    output_pixels: int
    max_side: int
    multiple: int

    def source_pixels(self, sources: int) -> int:
        """The limit where a row has this many sources."""
        return self.input_pixels[min(sources, len(self.input_pixels)) - 1]


class FilePairs:
    """Rows of a jsonl file; a batch holds images of about the same number of pixels, or exactly of one size."""

    def __init__(self, requests: Sequence[EditRequest], size: PairSize, *, exact: bool = False):
        """Reads the headers of all images. Raises InputError for one that cannot be used."""
        self._requests, self._size = requests, size
        self.keys = [self._sizes(request) for request in requests]
        if not exact:  # half octaves
            self.keys = [tuple(round(2 * math.log2(h * w)) for h, w in key) for key in self.keys]

    def _sizes(self, request: EditRequest) -> tuple[tuple[int, int], ...]:
        size, pixels = self._size, self._size.source_pixels(len(request.images))
        limits = [(path, pixels) for path in request.images] + [(request.output, size.output_pixels)]
        return tuple(
            images.editor_size(
                *images.image_size(path), max_pixels=most, max_side=size.max_side, multiple=size.multiple
            )
            for path, most in limits
        )

    def __getitem__(self, index: int) -> EditPair:
        request, size = self._requests[index], self._size
        pixels = size.source_pixels(len(request.images))
        fit = lambda path, most: images.resize_for_editor(images.read_image(path), most, size.max_side, size.multiple)
        try:
            sources = tuple(fit(path, pixels) for path in request.images)
            return EditPair(request.instruction, sources, fit(request.output, size.output_pixels), request.key)
        except InputError as error:
            raise InputError(f"{request.where}: {error}") from error


class EditWorldPairs:
    """The first `count` edits of an EditWorld split with their exact targets; sides alternate.

    Pictures are rendered when first asked for, and kept.
    """

    def __init__(self, split: str, count: int, seed: int = 0):
        self._split, self._seed, self._kept = split, seed, {}
        self.keys = [(SIDES[index % len(SIDES)],) for index in range(count)]

    def __getitem__(self, index: int) -> EditPair:
        if index not in self._kept:
            sample = sample_edit(self._split, index, seed=self._seed, side=self.keys[index][0])
            self._kept[index] = EditPair(sample.instruction, (render(sample.source),), render(sample.target), index)
        return self._kept[index]


def read_pairs(path: str, split: str, count: int, size: PairSize, *, check: str = "decode", exact: bool = False):
    """`EditWorldPairs` for the path "editworld" (`split` and `count` are its own), else `FilePairs`.

    Raises:
        InputError: unreadable rows or images, or EditWorld images that the editor's `size` would change.
    """
    if path != "editworld":
        return FilePairs(read_requests(path, check=check, outputs=True), size, exact=exact)
    if count < 1:
        raise InputError(f"EditWorld rows: {count}, use at least 1")
    if any(side % size.multiple or side**2 > min(size.output_pixels, size.input_pixels[0]) for side in SIDES):
        raise InputError(
            f"EditWorld's images of {' and '.join(map(str, SIDES))} pixels do not fit this editor (multiples of "
            f"{size.multiple}, at most {size.output_pixels} pixels): raise the limits, or use another editor"
        )
    return EditWorldPairs(split, count)
