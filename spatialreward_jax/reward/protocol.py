"""What the judge is asked, and how its two answers become a `Score`.

Plain Python and NumPy: any judge can be put behind it.

SC (semantic consistency) sees the sources, then the edited image; PQ (perceptual quality) sees the edited image alone.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import read_image
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.parsing import AnsweredRegion, Parsed, parse, writable
from spatialreward_jax.reward.templates import Templates
from spatialreward_jax.reward.types import Edit, Identity, Region, Score

_CITED = re.compile(r"<\|bbox_(\d{1,9})\|>")


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """One question to a judge: images (uint8 [H, W, 3], in order), then the text. stream: "sc" or "pq".

    opening: how the answer begins; the judge goes on from there. draw: number of the answer where several are drawn.
    """

    images: tuple[np.ndarray, ...]
    text: str
    stream: str
    opening: str = ""
    draw: int = 0


class Reply(NamedTuple):
    """A judge's answer, the question's opening included. complete: False where it was cut off at the token limit.

    expected: means of the two sub-scores that stand in for those in the text, or None. failure: why the text must not
    be believed, even where it can be read.
    """

    text: str
    complete: bool = True
    expected: tuple[float, float] | None = None
    failure: str = ""


class Answerer(Protocol):
    """Whatever answers questions about images: our VLM, an HTTP endpoint, or given answers in a test.

    Attributes:
        model, revision, pixel_policy, decoding: its share of a score's `Identity`.
    """

    model: str
    revision: str
    pixel_policy: str
    decoding: str

    def check(self, question: Question) -> None:
        """Raises InputError for a question that cannot be asked. Cheap."""

    def answer(self, questions: Sequence[Question]) -> list["Reply"]:
        """One reply per question, in order; an empty text where no answer came.

        Raises InputError for a question that cannot be asked, before anything is compiled.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ReadEdit:
    """An edit whose images are decoded: uint8 [H, W, 3]."""

    sources: tuple[np.ndarray, ...]
    edited: np.ndarray
    instruction: str


def read_edits(edits: Sequence[Edit], *, first: int = 0) -> list[ReadEdit]:
    """Decodes every image once (one object given several times is read once). Raises InputError naming the edit.

    Edits are numbered from `first`.
    """
    seen: dict[object, np.ndarray] = {}

    def read(image):
        key = image if isinstance(image, str) else id(image)
        if key not in seen:
            seen[key] = read_image(image)
        return seen[key]

    read_all = []
    for row, edit in enumerate(edits, first):
        if not isinstance(edit.instruction, str) or not edit.instruction.strip():
            raise InputError(f"edit {row}: the instruction is empty: say what the edit was meant to do")
        if not edit.sources:
            raise InputError(f"edit {row}: no source image: give at least one")
        try:
            read_all.append(ReadEdit(tuple(map(read, edit.sources)), read(edit.edited), edit.instruction))
        except InputError as why:
            raise InputError(f"edit {row}: {why}") from why
    return read_all


def questions(edit: ReadEdit, templates: Templates) -> tuple[Question, Question]:
    """-> (SC question, PQ question)."""
    return (
        Question((*edit.sources, edit.edited), templates.sc_text(edit.instruction, len(edit.sources)), "sc"),
        Question((edit.edited,), templates.pq_text(), "pq"),
    )


def read_answers(
    sc: str | Reply,
    pq: str | Reply,
    size: tuple[int, int],
    *,
    parsing: str = "strict",
    aggregation: Aggregation | None = None,
    identity: Identity | None = None,
) -> Score:
    """Two answers -> `Score`. size: (height, width) of the edited image; default aggregation: the published weights."""
    sc, pq = (Reply(text) if isinstance(text, str) else text for text in (sc, pq))
    sc, pq = (reply._replace(text=writable(reply.text)) for reply in (sc, pq))
    semantic, quality = parse(sc.text, parsing, regions=True), parse(pq.text, parsing, regions=False)
    neutral = semantic.neutral + quality.neutral
    semantic, quality = _scored(semantic, sc), _scored(quality, pq)
    errors = [
        f"{name}: {part.error}{'' if reply.complete else ' (cut off at the token limit)'}"
        for name, part, reply in (("SC", semantic, sc), ("PQ", quality, pq))
        if part.scores is None
    ]
    aggregation = aggregation or Aggregation(clamp=parsing != "bench")
    regions = tuple(pixel_region(region, size) for region in semantic.regions)
    text = {
        "regions": regions,
        "reasoning": semantic.reasoning,
        "quality_reasoning": quality.reasoning,
        "raw_sc": sc.text,
        "raw_pq": pq.text,
        "identity": identity,
    }
    overall = None
    if not errors:
        try:
            overall = aggregation(semantic.scores, quality.scores)
        except (ValueError, OverflowError) as why:
            errors.append(f"aggregation: {why}")
    if overall is None:
        return Score(valid=False, errors=tuple(errors), **text)
    return Score(
        valid=True,
        overall=overall.overall,
        reward=overall.reward,
        semantic=overall.semantic,
        quality=overall.quality,
        success=semantic.scores[0],
        no_overedit=semantic.scores[1],
        naturalness=quality.scores[0],
        artifact_free=quality.scores[1],
        neutral=neutral,
        warnings=semantic.warnings + quality.warnings + _oddities(regions, semantic.reasoning),
        **text,
    )


def _scored(part: Parsed, reply: Reply) -> Parsed:
    """An answer with the scores that count: those in its text, their means, or none."""
    if reply.failure:
        return dataclasses.replace(part, scores=None, error=reply.failure)
    if part.scores is None or reply.expected is None:
        return part
    return dataclasses.replace(part, scores=reply.expected)


def pixel_region(region: AnsweredRegion, size: tuple[int, int]) -> Region:
    """A box in 0..1000 -> ordered, clipped pixels of an image of `size` (height, width); oddities are flagged."""
    height, width = size
    x1, y1, x2, y2 = region.bbox_2d
    flags = []
    if x1 > x2 or y1 > y2:
        flags.append("disordered")
    if not all(0 <= side <= 1000 for side in region.bbox_2d):
        flags.append("out of range")
    left, right = (min(max(x, 0.0), 1000.0) * width / 1000 for x in sorted((x1, x2)))
    top, bottom = (min(max(y, 0.0), 1000.0) * height / 1000 for y in sorted((y1, y2)))
    if left == right or top == bottom:
        flags.append("empty")
    return Region(region.id, region.label, region.bbox_2d, (left, top, right, bottom), tuple(flags))


def _oddities(regions: Sequence[Region], reasoning: str) -> tuple[str, ...]:
    """What a reader of a valid score should know about its boxes."""
    flagged = [f"region {region.id}: bbox_2d {', '.join(region.flags)}" for region in regions if region.flags]
    known, cited = {region.id for region in regions}, set(map(int, _CITED.findall(reasoning)))
    missing = [f"the reasoning cites region {n}, which is not in edit_region" for n in sorted(cited - known)]
    uncited = [f"region {n} is not cited in the reasoning" for n in sorted(known - cited)]
    return (*flagged, *missing, *uncited)
