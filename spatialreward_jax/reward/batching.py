"""Which images and questions run together, so that few shapes are compiled and every image is encoded once.

Host code on numbers alone. Questions that share images (the SC and PQ streams of an edit, the edits of one source) land
in one pass, whose images are encoded first and then shown to all its questions.
"""

import dataclasses
from collections.abc import Sequence

from spatialreward_jax.generate import bucket


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest shapes, each a bound on device memory.

    Attributes:
        batch: questions decoded together.
        patches: vision patches encoded together; an image with more is encoded alone.
        images: images whose features are kept on the devices at a time.
        prompt: tokens of a prompt, image tokens included.
    """

    batch: int = 16
    patches: int = 16384
    images: int = 256
    prompt: int = 24576


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Questions (indices) decoded together: `rows` >= their number, prompts padded to `length` tokens."""

    questions: tuple[int, ...]
    rows: int
    length: int


@dataclasses.dataclass(frozen=True)
class Pass:
    """Images (indices), each padded to `patches`, encoded `rows` at a time into `slots` >= their number; batches."""

    images: tuple[int, ...]
    patches: int
    rows: int
    slots: int
    batches: tuple[Batch, ...]


def plan(lengths: Sequence[int], shown: Sequence[Sequence[int]], patches: Sequence[int], limits: Limits) -> list[Pass]:
    """Passes that cover every question once.

    Args:
        lengths: tokens of each question.
        shown: images of each question, as indices into `patches`.
        patches: patches of each image.
        limits: largest shapes.

    Returns:
        Passes. An image is in one pass only, unless more than `limits.images` images hang together by shared questions.
    """
    passes, open_pass = [], None
    for group in _groups(shown, len(patches)):
        size = bucket(max(patches[image] for question in group for image in shown[question]))
        for question in group:
            images = set(shown[question])
            full = open_pass is not None and len(open_pass[1] | images) > limits.images
            if open_pass is None or open_pass[0] != size or full:
                passes.append(open_pass := (size, set(), []))
            open_pass[1].update(images)
            open_pass[2].append(question)
    return [_pass(size, sorted(images), questions, lengths, limits) for size, images, questions in passes]


def _groups(shown: Sequence[Sequence[int]], images: int) -> list[list[int]]:
    """Questions connected by shared images, groups in the order of their first question, by size bucket later."""
    parent = list(range(images))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for seen in shown:
        for image in seen[1:]:
            parent[root(image)] = root(seen[0])
    groups: dict[int, list[int]] = {}
    for question, seen in enumerate(shown):
        groups.setdefault(root(seen[0]), []).append(question)
    return list(groups.values())


def _pass(size: int, images: list[int], questions: list[int], lengths: Sequence[int], limits: Limits) -> Pass:
    slots = power_of_two(len(images))
    rows = max(1, min(slots, limits.patches // size))
    rows = 1 << (rows.bit_length() - 1)
    by_length: dict[int, list[int]] = {}
    for question in questions:
        by_length.setdefault(bucket(lengths[question], most=limits.prompt), []).append(question)
    batches = []
    for length, members in sorted(by_length.items()):
        for start in range(0, len(members), limits.batch):
            part = tuple(members[start : start + limits.batch])
            batches.append(Batch(part, min(power_of_two(len(part)), limits.batch), length))
    return Pass(tuple(images), size, rows, slots, tuple(batches))


def power_of_two(count: int) -> int:
    """Smallest power of two >= count >= 1."""
    return 1 << (count - 1).bit_length()
