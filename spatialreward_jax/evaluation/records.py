"""What a benchmark is made of: rows that hold edits to score, and the verdicts on them."""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.types import SCORE_RANGE, Edit

Box = tuple[float, float, float, float]
DIMENSIONS = ("prompt_following", "consistency", "overall")
_SUB_SCORES = ("success", "no_overedit", "naturalness", "artifact_free")
_NUMBERS = ("overall", *_SUB_SCORES)
_FAR = 1e9


def check_text(*texts: str) -> None:
    """Raises InputError for text that no file can hold: a lone surrogate, which a JSON escape can name."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{ascii(text)[:80]} is no text: a lone surrogate at character {error.start}") from error


def mark(instruction: str, images: Sequence[bytes | pathlib.Path]) -> str:
    """A digest of an instruction and of images; a path stands for its name and size."""
    digest = hashlib.blake2b(instruction.encode(), digest_size=12)
    for image in images:
        digest.update(f"{image.name}:{image.stat().st_size}".encode() if isinstance(image, pathlib.Path) else image)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a benchmark, without its images.

    Attributes:
        id: unique within the benchmark.
        keys: keys of the edits that the row compares, in the row's order; edits with equal keys are scored once.
        labels: what tables are made by, e.g. {"category": "style", "size": "3pair"}; values are text.
        cluster: rows that share a source and an instruction share it; they are resampled together.
        truth: true edit regions per key, boxes in 0..1000 of the edited image; () for "nothing was edited", None where
            the truth is not known.
    """

    id: str
    keys: tuple[str, ...]
    labels: Mapping[str, str]
    cluster: str
    truth: tuple[tuple[Box, ...] | None, ...] = ()

    def __post_init__(self):
        check_text(self.id, *self.keys, *self.labels.values(), self.cluster)

    def true_boxes(self, index: int) -> tuple[Box, ...] | None:
        """True edit regions of edit `index`, or None where they are not known."""
        return self.truth[index] if index < len(self.truth) else None


@dataclasses.dataclass(frozen=True)
class Row:
    """A case with the edits behind its keys; images are still paths or bytes."""

    case: Case
    edits: tuple[Edit, ...]

    def __post_init__(self):
        check_text(*(edit.instruction for edit in self.edits))


@dataclasses.dataclass(frozen=True)
class Broken:
    """A row that cannot be used: `where` it stands, and `why`."""

    where: str
    why: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge said of one edit, from our `Score` or from another judge's file.

    Attributes:
        valid: whether there are numbers at all.
        overall: 0..10. success, no_overedit, naturalness, artifact_free: 0..25; None where the judge gives none.
        boxes: edited regions as answered, in 0..1000 of the edited image. flagged: how many of them are ill-formed.
        neutral: how many of the four sub-scores the official parsing made up, because the answer gives none.
        error: why it is not valid.
        readable: False when no judge could be asked, because the images cannot be read.
    """

    valid: bool
    overall: float | None = None
    success: float | None = None
    no_overedit: float | None = None
    naturalness: float | None = None
    artifact_free: float | None = None
    boxes: tuple[Box, ...] = ()
    flagged: int = 0
    neutral: int = 0
    error: str = ""
    readable: bool = True

    def dimension(self, name: str) -> float | None:
        """0..10 on a dimension: prompt_following = success / 2.5, consistency = no_overedit / 2.5, overall."""
        if name not in DIMENSIONS:
            raise InputError(f"dimension {name!r} is unknown: choose one of {', '.join(DIMENSIONS)}")
        if not self.valid:
            return None
        if name == "overall":
            return self.overall
        value = self.success if name == "prompt_following" else self.no_overedit
        return None if value is None else value / (SCORE_RANGE / 10)

    def sub_scores(self) -> tuple[float, float, float, float] | None:
        """(success, no_overedit, naturalness, artifact_free) in 0..25, or None unless all four are there."""
        values = tuple(getattr(self, name) for name in _SUB_SCORES)
        return None if not self.valid or None in values else values


def verdict_from_json(record: Mapping[str, Any]) -> Verdict:
    """A `Score.to_json()` dictionary, or one that has at least `overall` (0..10), as a verdict.

    Unless the record says otherwise it counts as valid when `overall` is a finite number. Raises InputError for numbers
    that are no numbers, and in other judges' records (without `raw_sc`) for those outside overall 0..10, sub-scores
    0..25, which betray another scale; our own `bench` parsing may leave that range, as the official programs do.
    """
    if record.get("broken"):
        return Verdict(False, error=str(record["broken"]), readable=False)
    bounded = "raw_sc" not in record
    numbers = {name: _number(record.get(name), name, bounded) for name in _NUMBERS}
    valid = record.get("valid", numbers["overall"] is not None)
    if not valid:
        errors = record.get("errors") or ["the answer gives no score"]
        return Verdict(False, error="; ".join(map(str, errors)), **_regions(record))
    if numbers["overall"] is None:
        raise InputError("a valid answer without `overall`: give a number in 0..10, or set `valid` to false")
    return Verdict(True, **numbers, **_regions(record), neutral=int(record.get("neutral", 0)))


def _number(value: Any, name: str, bounded: bool) -> float | None:
    if value is None:
        return None
    limit = 10 if name == "overall" else SCORE_RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}: want a finite number in 0..{limit}")
    if bounded and not -1e-9 <= value <= limit + 1e-9:
        raise InputError(f"{name} is {value:g}: want a number in 0..{limit}")
    return float(value)


def box_of(sides: Any) -> Box:
    """Four finite numbers as a box, far ones cut so that its area is finite. Raises InputError for anything else."""
    box = tuple(map(float, sides)) if isinstance(sides, list | tuple) else ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise InputError(f"a box is {str(sides)[:80]}: want four finite numbers")
    return tuple(min(max(side, -_FAR), _FAR) for side in box)


def _regions(record: Mapping[str, Any]) -> dict[str, Any]:
    regions = record.get("regions") or []
    boxes = tuple(box_of(region["bbox_2d"]) for region in regions)
    return {"boxes": boxes, "flagged": sum(bool(region.get("flags")) for region in regions)}
