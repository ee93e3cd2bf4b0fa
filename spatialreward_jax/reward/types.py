"""What is scored, and what a score says. Plain Python and NumPy: usable with any vision-language model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from spatialreward_jax.io.images import ImageLike

SCORE_RANGE = 25
"""The judge's own scale: every sub-score lies in 0..25."""

SCORE_MODES = ("answered", "expected")
"""Sub-scores are the numbers in the answer, or the means of the distribution that these were chosen from."""

NEUTRAL = 12.5
"""What the official programs put where an answer cannot be read. Never used by `strict` parsing."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit to judge.

    Attributes:
        source: image before the edit, or a sequence of several. An image is a path, the bytes of a file, a PIL image or
            a uint8 array [H, W, 3].
        edited: image after the edit.
        instruction: what the edit was asked to do.
    """

    source: ImageLike | Sequence[ImageLike]
    edited: ImageLike
    instruction: str

    @property
    def sources(self) -> tuple[ImageLike, ...]:
        """The source images, always as a tuple."""
        return tuple(self.source) if isinstance(self.source, list | tuple) else (self.source,)


@dataclasses.dataclass(frozen=True)
class Region:
    """One region that the judge says was edited.

    Attributes:
        id: the number by which the reasoning cites it (`<|bbox_id|>`).
        label: the judge's words for it.
        bbox_2d: (x1, y1, x2, y2) as answered, in 0..1000 of the edited image.
        box: (left, top, right, bottom) in pixels of the edited image, ordered and clipped to it.
        flags: what was wrong with `bbox_2d`: "disordered", "out of range", "empty".
    """

    id: int
    label: str
    bbox_2d: tuple[float, float, float, float]
    box: tuple[float, float, float, float]
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Identity:
    """What produced a score; two scores compare only when these are equal.

    Attributes:
        model: name or path of the judge; `revision` a hash of its files and the precision it computes in, "" if none.
        template: id of the wording (name and content hash). pixel_policy, parsing, aggregation, decoding: as chosen.
    """

    model: str
    revision: str
    template: str
    pixel_policy: str
    parsing: str
    aggregation: str
    decoding: str


@dataclasses.dataclass(frozen=True)
class Score:
    """The verdict on one edit. When `valid` is False every number is None and `errors` says why.

    Attributes:
        valid: whether both answers could be read; of an ensemble, both of one draw at least. Its numbers are then the
            means over such draws, its words and regions those of the first of them.
        overall: 0..10. reward: overall / 10, 0..1.
        semantic, quality: 0..10, the SC and PQ parts of `overall`.
        success, no_overedit, naturalness, artifact_free: 0..25, as the judge gave them.
        regions: what was edited, from the SC answer.
        reasoning, quality_reasoning: the judge's words, SC and PQ.
        neutral: how many of the four sub-scores are `NEUTRAL` because the answer gives none; 0 under `strict` parsing.
        errors: why the sample is invalid, one line each. warnings: what was odd in a valid one.
        raw_sc, raw_pq: the two answers as they came.
        identity: what produced the score.
    """

    valid: bool
    overall: float | None = None
    reward: float | None = None
    semantic: float | None = None
    quality: float | None = None
    success: float | None = None
    no_overedit: float | None = None
    naturalness: float | None = None
    artifact_free: float | None = None
    regions: tuple[Region, ...] = ()
    reasoning: str = ""
    quality_reasoning: str = ""
    neutral: int = 0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    raw_sc: str = ""
    raw_pq: str = ""
    identity: Identity | None = None

    def __post_init__(self):
        numbers = [getattr(self, name) for name in NUMBERS]
        if self.valid and any(n is None or not np.isfinite(n) for n in numbers):
            raise ValueError(f"a valid score needs every number finite, got {dict(zip(NUMBERS, numbers))}")
        if not self.valid and any(n is not None for n in numbers):
            raise ValueError(f"an invalid score carries no number, got {dict(zip(NUMBERS, numbers))}")
        if not self.valid and not self.errors:
            raise ValueError("an invalid score must say why in `errors`")

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers under the attributes' names; numbers null when invalid."""
        return _plain(dataclasses.asdict(self))


NUMBERS = ("overall", "reward", "semantic", "quality", "success", "no_overedit", "naturalness", "artifact_free")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
