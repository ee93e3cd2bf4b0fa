"""Which images and questions run together, so that few shapes are compiled and nothing is read twice.

Host code on numbers alone. Questions that share images (the SC and PQ streams of an edit, the edits of one source) land
in one pass, whose images are encoded first and then shown to all its questions. In a pass, questions wait for slots of
a decoding loop; where several begin alike (the edits of one source), that beginning is read once.
"""

import dataclasses
from collections.abc import Hashable, Sequence

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import bucket
from spatialreward_jax.reward.processor import patch_bucket

SPREAD = 4
"""A run's longest prompt is at most this much longer than its shortest: all its slots have room for the longest."""

PARTS = 4
"""Buckets of prompt lengths between two powers of two: reading prompts is most of the work, padding at most a fifth."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest shapes, each a bound on device memory.

    Attributes:
        batch: questions decoded together.
        patches: vision patches encoded together; an image with more is encoded alone.
        images: images whose features are kept on the devices at a time.
        prompt: tokens of a prompt, image tokens included.
        tokens: of prompts that are read together; a longer prompt is read alone.
        beginnings: of prompts kept at a time for the questions that share them; 0: none is shared.
        stride: tokens of a row that one pass of the net reads where the grammar forces them (see `engine.PASS`).
    """

    batch: int = 16
    patches: int = 16384
    images: int = 256
    prompt: int = 24576
    tokens: int = 16384
    beginnings: int = 8
    stride: int = 8

    def __post_init__(self):
        for name in ("batch", "patches", "images", "prompt", "tokens", "stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} of the judge: use at least 1")


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Beginnings:
    """Beginnings of prompts that are read together: of `questions` (one for each), padded to `rows` and `length`."""

    questions: tuple[int, ...]
    rows: int
    length: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Questions (indices) whose prompts are read in programs of one shape, as many at a time as slots are free.

    Attributes:
        length: tokens that they are padded to. rows: the most that are read together.
        beginnings: what they go on behind, and `which` of these each; None where whole prompts are read.
    """

    questions: tuple[int, ...]
    length: int
    rows: int
    beginnings: Beginnings | None = None
    which: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """Questions that go through `rows` slots with room for prompts of `length` tokens, part after part."""

    rows: int
    length: int
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Pass:
    """Images (indices), each padded to `patches`, encoded `rows` at a time into `slots` >= their number; runs."""

    images: tuple[int, ...]
    patches: int
    rows: int
    slots: int
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Length:
    """Tokens of a prompt, of which the first `begin` are those of every prompt with an equal `key`."""

    whole: int
    begin: int = 0
    key: Hashable = None


def plan(
    lengths: Sequence[Length],
    shown: Sequence[Sequence[int]],
    patches: Sequence[int],
    limits: Limits,
    *,
    lanes: int = 1,
) -> list[Pass]:
    """Passes that cover every question once.

    Args:
        lengths: of each question.
        shown: images of each question, as indices into `patches`.
        patches: patches of each image.
        limits: largest shapes.
        lanes: runs of a pass that go on at the same time; what would fill the slots of so many is dealt to as many.

    Returns:
        Passes. An image is in one pass only, unless more than `limits.images` images hang together by shared questions.
    """
    passes, open_pass = [], None
    size_of = lambda group: patch_bucket(max(patches[image] for question in group for image in shown[question]))
    groups = [(size_of(group), group) for group in _groups(shown, len(patches))]
    for size, group in sorted(groups, key=lambda item: -item[0]):  # largest first: if memory fails, then at once
        for question in group:
            images = set(shown[question])
            full = open_pass is not None and len(open_pass[1] | images) > limits.images
            if open_pass is None or open_pass[0] != size or full:
                passes.append(open_pass := (size, set(), []))
            open_pass[1].update(images)
            open_pass[2].append(question)
    return [_pass(size, sorted(images), questions, lengths, limits, lanes) for size, images, questions in passes]


def _groups(shown: Sequence[Sequence[int]], images: int) -> list[list[int]]:
    """Questions connected by shared images, groups in the order of their first question."""
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


def _pass(
    size: int, images: list[int], questions: list[int], lengths: Sequence[Length], limits: Limits, lanes: int
) -> Pass:
    slots = power_of_two(len(images))
    rows = max(1, min(slots, limits.patches // size))
    rows = 1 << (rows.bit_length() - 1)
    runs: list[list[int]] = []
    for question in sorted(questions, key=lambda q: -lengths[q].whole):
        if not runs or lengths[runs[-1][0]].whole > SPREAD * lengths[question].whole:
            runs.append([])
        runs[-1].append(question)
    room = lambda run: _bucket(lengths[run[0]].whole, limits)
    dealt = [(share, room(run)) for run in runs for share in _deal(sorted(run), lengths, limits, lanes)]
    return Pass(tuple(images), size, rows, slots, tuple(_run(*share, lengths, limits) for share in dealt))


def _deal(questions: list[int], lengths: Sequence[Length], limits: Limits, lanes: int) -> list[list[int]]:
    """A share of about as many tokens for each lane, where they fill its slots; else one of all.

    What begins alike stays together, unless it is a large part of all.
    """
    if lanes == 1 or len(questions) < lanes * limits.batch:
        return [questions]
    alike: dict[Hashable, list[int]] = {}
    for question in questions:
        alike.setdefault((lengths[question].begin, lengths[question].key), []).append(question)
    most = -(-len(questions) // (2 * lanes))
    pieces = [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]
    tokens = lambda piece: sum(lengths[question].whole for question in piece)
    shares: list[list[int]] = [[] for _ in range(lanes)]
    for piece in sorted(pieces, key=lambda piece: -tokens(piece)):
        min(shares, key=tokens).extend(piece)
    return [sorted(share) for share in shares if share]


def _run(questions: list[int], room: int, lengths: Sequence[Length], limits: Limits) -> Run:
    """Shared beginnings first, each held while its own questions wait; then whole prompts, the longest first."""
    tables: dict[int, list[list[int]]] = {}
    for group in _alike(questions, lengths, limits) if limits.beginnings else ():
        tables.setdefault(_begin_bucket(lengths[group[0]].begin), []).append(group)
    parts = []
    for length, groups in tables.items():
        rows = _rows(length, limits.beginnings, limits)
        rows = min(rows, power_of_two(len(groups)))  # the last few are padded, so that one program reads them all
        for start in range(0, len(groups), rows):
            parts += _behind(groups[start : start + rows], rows, length, lengths, limits)
    shared = {question for part in parts for question in part.questions}
    whole: dict[int, list[int]] = {}
    for question in questions:
        if question not in shared:
            whole.setdefault(_bucket(lengths[question].whole, limits), []).append(question)
    for length, members in sorted(whole.items(), reverse=True):
        parts.append(Part(tuple(members), length, _rows(length, limits.batch, limits)))
    return Run(min(power_of_two(len(questions)), limits.batch), room, tuple(parts))


def _alike(questions: Sequence[int], lengths: Sequence[Length], limits: Limits) -> list[list[int]]:
    """Groups of questions that begin alike, where reading the beginning once reads fewer tokens, padding included."""
    groups: dict[Hashable, list[int]] = {}
    for question in questions:
        if lengths[question].begin:
            groups.setdefault(lengths[question].key, []).append(question)

    def saved(group: list[int]) -> int:
        whole = sum(_bucket(lengths[q].whole, limits) for q in group)
        rest = sum(_bucket(lengths[q].whole - lengths[q].begin, limits) for q in group)
        return whole - rest - _begin_bucket(lengths[group[0]].begin)

    return [group for group in groups.values() if len(group) > 1 and saved(group) > 0]


def _behind(groups: list[list[int]], rows: int, length: int, lengths: Sequence[Length], limits: Limits) -> list[Part]:
    """Parts of some groups whose beginnings are kept together, padded to `rows` and `length`."""
    beginnings = Beginnings(tuple(group[0] for group in groups), rows, length)
    rests: dict[int, list[tuple[int, int]]] = {}
    for which, group in enumerate(groups):
        for question in group:
            rest = lengths[question].whole - lengths[question].begin
            rests.setdefault(_bucket(rest, limits), []).append((question, which))
    parts = []
    for rest, members in sorted(rests.items(), reverse=True):
        behind, which = zip(*members)
        parts.append(Part(behind, rest, _rows(length + rest, limits.batch, limits), beginnings, which))
    return parts


def _rows(length: int, most: int, limits: Limits) -> int:
    """The largest power of two of prompts, at most `most`, that are read together."""
    rows = max(1, min(most, limits.tokens // length))
    return 1 << (rows.bit_length() - 1)


def _bucket(length: int, limits: Limits) -> int:
    return bucket(length, most=limits.prompt, parts=PARTS)


def _begin_bucket(length: int) -> int:
    return bucket(length, least=16, parts=PARTS)


def power_of_two(count: int) -> int:
    """Smallest power of two >= count >= 1."""
    return 1 << (count - 1).bit_length()
