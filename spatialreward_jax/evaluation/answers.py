"""Answers that another judge gave, read from a file: a benchmark can then be evaluated without any model.

jsonl, one line per edit: `key` and either

- numbers: `overall` 0..10 and optionally success, no_overedit, naturalness, artifact_free 0..25, `valid`, `regions`
  (what our own `answers.jsonl` holds); an aggregation that is asked for is computed anew from the four, or
- texts: `sc` and `pq`, the judge's two raw answers, read by the parsing mode and aggregation asked for.

Keys: `{n}pair/{pair_id}/{place}` (mer, editworld; place 0 is the truly best edit), the row's own two keys (editreward),
`{id}_A` and `{id}_B` (mmrb2), `{language}/{task_type}/{key}/{sample}` (gedit; our own end in a digest of the image).

json, an object: a result file of the official programs, `{key: {"scores": {prompt_following, consistency, overall}}}`
or, for MER-Bench, `{pair_id: {"scores": [...], "pair_type": n}}`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.records import Broken, Verdict, verdict_from_json
from spatialreward_jax.reward import protocol
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.types import SCORE_RANGE


class Answers(NamedTuple):
    """Verdicts by key, lines that could not be read, and keys that came again (the first one counts)."""

    verdicts: dict[str, Verdict]
    broken: list[Broken]
    duplicates: list[str]


def read_answers(
    path: str | pathlib.Path, *, parsing: str = "strict", aggregation: Aggregation | None = None
) -> Answers:
    """Reads a file of answers. Raises InputError without one.

    Args:
      path: the file.
      parsing: how raw texts are read.
      aggregation: of the four sub-scores; a line that has them not is then broken. None leaves `overall` as it is
        given, and takes the published one for raw texts.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}: --answers wants a jsonl file of answers")
    if path.suffix == ".json":
        entries = _official(path)
    else:
        with open(path, encoding="utf-8", errors="replace") as lines:
            entries = [(f"{path.name}:{n}", None, line) for n, line in enumerate(lines, 1) if line.strip()]
    answers = Answers({}, [], [])
    for where, key, entry in entries:
        try:
            record = _loads(entry) if key is None else entry
            key = str(record["key"]) if key is None else key
            verdict = _verdict(record, parsing, aggregation)
        except (InputError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            answers.broken.append(Broken(where, f"{type(error).__name__}: {error}"[:200]))
            continue
        if key in answers.verdicts:
            answers.duplicates.append(key)
        else:
            answers.verdicts[key] = verdict
    return answers


def _loads(line: str) -> dict:
    record = json.loads(line)
    if not isinstance(record, dict) or "key" not in record:
        raise InputError("want a JSON object with `key`")
    return record


def _verdict(record: Mapping[str, Any], parsing: str, aggregation: Aggregation | None) -> Verdict:
    if "sc" not in record and "pq" not in record:
        given = verdict_from_json(record)
        return given if aggregation is None or not given.valid else _aggregated(given, aggregation)
    texts = str(record.get("sc", "")), str(record.get("pq", ""))
    score = protocol.read_answers(*texts, (1000, 1000), parsing=parsing, aggregation=aggregation)
    return verdict_from_json(score.to_json())


def _aggregated(verdict: Verdict, aggregation: Aggregation) -> Verdict:
    scores = verdict.sub_scores()
    if scores is None:
        raise InputError(f"the {aggregation.name} aggregation needs success, no_overedit, naturalness, artifact_free")
    return dataclasses.replace(verdict, overall=aggregation(scores[:2], scores[2:]).overall)


def _official(path: pathlib.Path) -> list[tuple[str, str, dict]]:
    objects: list[list[tuple[str, Any]]] = []  # as pairs, so that a key that stands twice is seen; the whole comes last

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        objects[:] = [pairs]
        return dict(pairs)

    try:
        results = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=keep)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(results, dict):
        raise InputError(f"{path}: want an object of results by key, got {type(results).__name__}")
    entries = []
    for key, result in objects[0]:
        scores = result.get("scores") if isinstance(result, dict) else None
        if isinstance(scores, list):
            ident = f"{len(scores)}pair/{key}"
            entries += [(f"{path.name}[{key}]", f"{ident}/{i}", {"overall": score}) for i, score in enumerate(scores)]
        elif isinstance(scores, dict):
            entries.append((f"{path.name}[{key}]", key, _from_dimensions(scores)))
        else:
            entries.append((f"{path.name}[{key}]", key, {}))
    return entries


def _from_dimensions(scores: Mapping[str, Any]) -> dict:
    unit = SCORE_RANGE / 10
    record = {"overall": scores.get("overall")}
    for name, dimension in (("success", "prompt_following"), ("no_overedit", "consistency")):
        if isinstance(scores.get(dimension), int | float):
            record[name] = scores[dimension] * unit
    return record
