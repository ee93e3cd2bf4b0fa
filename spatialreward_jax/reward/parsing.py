"""A judge's text -> two sub-scores, regions, reasoning; or the reason why there are none.

Four modes. `strict` is ours: one well-formed JSON object with in-range scores, or no number; `no_regions` is the same
for judges that were trained to name no regions (an ablation). `server` and `bench` repeat what the official reward
server and the official benchmark programs read, fall-backs to the neutral 12.5 included, so that published numbers can
be reproduced. In no mode does an unreadable or non-finite number pass.
"""

import dataclasses
import json
import math
import re
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.types import NEUTRAL, SCORE_RANGE

MODES = ("strict", "server", "bench", "no_regions")

_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"  # in one way only: a second one would be tried for every number of a list
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n?```", re.DOTALL)
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_SCORE_LIST = re.compile(rf'"score"\s*:\s*\[({_NUMBER}(?:,\s*{_NUMBER})+)\]')


@dataclasses.dataclass(frozen=True)
class AnsweredRegion:
    """A region as answered: bbox_2d (x1, y1, x2, y2) in 0..1000, not yet checked or ordered."""

    id: int
    label: str
    bbox_2d: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Parsed:
    """One answer, read.

    Attributes:
        scores: the two sub-scores, or None when `error` says why there are none.
        rule: what produced them (`json`, `single_quotes`, `numbers`, `pattern`, `no_json`, `empty`, `neutral`).
        found: the numbers in the text before neutral values were filled in.
        reasoning, regions: the rest of the answer. warnings: entries that were left out.
        error: empty when `scores` are there.
    """

    scores: tuple[float, float] | None
    rule: str
    found: tuple[float, ...] = ()
    reasoning: str = ""
    regions: tuple[AnsweredRegion, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def neutral(self) -> int:
        """How many of the scores are `NEUTRAL` because the text gives none."""
        return 0 if self.scores is None else 2 - len(self.found[:2])


def writable(text: str) -> str:
    """The text with "?" for lone surrogates, which a JSON escape can name and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse(text: str, mode: str, *, regions: bool) -> Parsed:
    """Reads one answer. `regions`: whether it is an SC answer, which lists edited regions. Never raises on any text."""
    if mode not in MODES:
        raise InputError(f"parsing mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    if mode == "no_regions":
        mode, regions = "strict", False
    parsed = {"strict": _strict, "server": _server, "bench": _bench}[mode](text, regions)
    parsed = dataclasses.replace(parsed, reasoning=writable(parsed.reasoning))
    if parsed.scores is not None and not all(math.isfinite(score) for score in parsed.scores):
        return dataclasses.replace(parsed, scores=None, error=f"scores {list(parsed.scores)} are not finite")
    return parsed


# ---------------------------------------------------------------------------------------------------------- strict


class _Malformed(ValueError):
    """Says what is wrong with a strict answer."""


def _strict(text: str, regions: bool) -> Parsed:
    if not text.strip():
        return Parsed(None, "empty", error="the answer is empty")
    body = text.strip()
    if fence := _FENCE.fullmatch(body):
        body = fence.group(1).strip()
    try:
        answer = json.loads(body, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if not isinstance(answer, dict):
            raise _Malformed(f"a JSON object was wanted, a {type(answer).__name__} came")
        found = _strict_regions(answer) if regions else ()
        return Parsed(_strict_scores(answer), "json", _strict_scores(answer), _strict_reasoning(answer), found)
    except _Malformed as why:
        return Parsed(None, "json", error=str(why))
    except json.JSONDecodeError as why:
        return Parsed(None, "no_json", error=f"not one JSON object: {why.msg} at character {why.pos} of {len(body)}")
    except (ValueError, OverflowError, RecursionError) as why:
        return Parsed(None, "no_json", error=f"unreadable JSON: {type(why).__name__}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise _Malformed(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise _Malformed(f"{name} is no JSON number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _strict_scores(answer: dict[str, Any]) -> tuple[float, float]:
    scores = answer.get("score")
    if not isinstance(scores, list) or len(scores) != 2 or not all(map(_is_number, scores)):
        raise _Malformed(f"`score` must be a list of two numbers, got {_short(scores)}")
    if not all(0 <= score <= SCORE_RANGE for score in scores):
        raise _Malformed(f"scores must lie in 0..{SCORE_RANGE}, got {_short(scores)}")
    return float(scores[0]), float(scores[1])


def _strict_reasoning(answer: dict[str, Any]) -> str:
    if not isinstance(answer.get("reasoning"), str):
        raise _Malformed(f"`reasoning` must be a string, got {_short(answer.get('reasoning'))}")
    return answer["reasoning"]


def _strict_regions(answer: dict[str, Any]) -> tuple[AnsweredRegion, ...]:
    entries = answer.get("edit_region")
    if not isinstance(entries, list):
        raise _Malformed(f"`edit_region` must be a list, got {_short(entries)}")
    read = tuple(map(_region, entries))
    for entry, region in zip(entries, read):
        if region is None:
            raise _Malformed(f"an edit region needs id, label and bbox_2d of four numbers, got {_short(entry)}")
    ids = [region.id for region in read]
    if len(set(ids)) < len(ids):
        raise _Malformed(f"edit regions must have different ids, got {_short(ids)}")
    return read


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------------- the official rules


def _server(text: str, regions: bool) -> Parsed:
    """The official reward server's rules; `rule` names the one that applied."""
    if not text.strip():
        return Parsed((NEUTRAL, NEUTRAL), "empty")
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return Parsed((NEUTRAL, NEUTRAL), "no_json")
    body = text[start : end + 1]
    try:
        for rule, candidate in (("json", body), ("single_quotes", body.replace("'", '"'))):
            try:
                answer = json.loads(candidate)
            except json.JSONDecodeError:
                continue
            return _lenient(answer, rule, regions, _server_scores(answer.get("score", [])))
        return _filled([float(number) for number in re.findall(_NUMBER, text)[:2]], "numbers")
    except (TypeError, ValueError, OverflowError, RecursionError) as why:
        return Parsed(None, "json", error=f"the official reader fails on this answer: {why or type(why).__name__}")


def _server_scores(value: Any) -> list[float]:
    if isinstance(value, int | float):
        return [float(value)]
    if isinstance(value, list):
        return [float(score) for score in value if isinstance(score, int | float)]
    raise TypeError(f"`score` is {_short(value)}")


def _filled(found: list[float], rule: str) -> Parsed:
    scores = (*found, NEUTRAL, NEUTRAL)[:2]
    return Parsed((scores[0], scores[1]), rule, tuple(found))


def _bench(text: str, regions: bool) -> Parsed:
    """The official benchmark programs' rules."""
    neutral = Parsed((NEUTRAL, NEUTRAL), "neutral")
    thought = text.rfind("</think>") + 1  # what is never closed stays, and is not searched for an end again and again
    body = (_THINK.sub("", text[: thought + 7]) + text[thought + 7 :] if thought else text).strip()
    start, end = body.find("{"), body.rfind("}")
    if start < 0 or end < start:
        return neutral
    body = body[start : end + 1]
    try:
        answer = json.loads(body)
    except json.JSONDecodeError:
        if match := _SCORE_LIST.search(body):
            first, second = (float(number) for number in match.group(1).split(",")[:2])
            return Parsed((first, second), "pattern", (first, second))
        return neutral
    except (ValueError, RecursionError):
        return neutral
    scores = answer.get("score", [])
    scores = scores if isinstance(scores, list) else [scores]
    scores = scores * 2 if len(scores) == 1 else scores[:2]
    if not all(isinstance(score, int | float) and abs(score) < 1e300 for score in scores):
        return Parsed(None, "json", error=f"the official program fails on this answer: `score` is {_short(scores)}")
    return _lenient(answer, "json", regions, [float(score) for score in scores])


def _lenient(answer: dict[str, Any], rule: str, regions: bool, found: list[float]) -> Parsed:
    """Regions and reasoning as far as they can be read."""
    entries = answer.get("edit_region") if regions else []
    entries = entries if isinstance(entries, list) else []
    read = [_region(entry) for entry in entries]
    warnings = tuple(f"edit region left out: {_short(entry)}" for entry, region in zip(entries, read) if region is None)
    reasoning = str(answer.get("reasoning", answer.get("reason", "")))
    kept = tuple(region for region in read if region is not None)
    return dataclasses.replace(_filled(found, rule), reasoning=reasoning, regions=kept, warnings=warnings)


def _region(entry: Any) -> AnsweredRegion | None:
    """One entry of `edit_region`, or None when it lacks an integer id, a label or four finite numbers."""
    if not isinstance(entry, dict):
        return None
    number, label, box = entry.get("id"), entry.get("label"), entry.get("bbox_2d")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(label, str):
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    x1, y1, x2, y2 = (float(side) for side in box)
    return AnsweredRegion(number, writable(label), (x1, y1, x2, y2))
