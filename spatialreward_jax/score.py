"""Scores edits: JSON out, and a picture with the judge's boxes where one is asked for.

    python -m spatialreward_jax.score --model=embedded --source=a.png --edited=b.png --instruction="paint it red"
    python -m spatialreward_jax.score --model=JUDGE --jsonl=edits.jsonl --out=scores.jsonl --overlay=boxes.png

A line of --jsonl is an object with `source` (a path or a list of paths), `edited` (a path) and `instruction`; paths are
relative to the file. One edit gives one indented JSON object, --jsonl one object a line, in order. Keys of an object:

    row, source, edited, instruction                        the edit (row: number of the line, from 0)
    valid                                                   whether both of the judge's answers could be read
    overall 0..10, reward 0..1, semantic, quality 0..10     null where valid is false
    success, no_overedit, naturalness, artifact_free        0..25 each, as the judge gave them; null where invalid
    regions                                                 id, label, bbox_2d (0..1000), box (pixels), flags
    reasoning, quality_reasoning, raw_sc, raw_pq            the judge's words and whole answers
    errors, warnings                                        why it is invalid; what was odd
    identity                                                model, revision, template, pixel_policy, parsing,
                                                            aggregation, decoding: what two scores must share to compare
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import read_image, write_png
from spatialreward_jax.reporting.overlay import score_overlay
from spatialreward_jax.reward.aggregate import KINDS
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.parsing import MODES
from spatialreward_jax.reward.pixels import POLICIES
from spatialreward_jax.reward.types import Edit, Score
from spatialreward_jax.reward.vlm import Decoding

_MODEL = flags.DEFINE_string("model", "embedded", "The judge: a folder in Hugging Face layout, or embedded.")
_ADAPTER = flags.DEFINE_string("adapter", "", "PEFT folder to put on the judge.")
_SOURCE = flags.DEFINE_multi_string("source", [], "Image before the edit; repeat the flag for several.")
_EDITED = flags.DEFINE_string("edited", "", "Image after the edit.")
_INSTRUCTION = flags.DEFINE_string("instruction", "", "What the edit was asked to do.")
_JSONL = flags.DEFINE_string("jsonl", "", "File with one edit a line, instead of the three flags above.")
_OUT = flags.DEFINE_string("out", "", "File for the JSON; by default it is printed.")
_OVERLAY = flags.DEFINE_string(
    "overlay", "", "PNG of source | edited with boxes; with --jsonl one a row: NAME-0000.png."
)
_TEMPLATES = flags.DEFINE_string("templates", "", "Wording of the questions: a shipped set or an imported folder.")
_PIXELS = flags.DEFINE_enum("pixel_policy", "eval", list(POLICIES), "How large images reach the judge.")
_PARSING = flags.DEFINE_enum("parsing", "strict", MODES, "How the judge's texts are read.")
_AGGREGATION = flags.DEFINE_enum("aggregation", "weighted", KINDS, "How sub-scores become one score.")
_TOKENS = flags.DEFINE_integer("max_new_tokens", 0, "Longest answer; 0: what the judge's folder says.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Edits of --jsonl that are scored at a time.", lower_bound=1)


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a --jsonl file, paths resolved, all fields checked. Raises InputError naming file and line."""
    file = pathlib.Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise InputError(f"cannot read {path}: {why}") from why
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as why:
            raise InputError(f"{path}:{number}: no JSON object: {why}") from why
        sources = row.get("source") if isinstance(row, dict) else None
        sources = [sources] if isinstance(sources, str) else sources
        texts = [*sources, row.get("edited"), row.get("instruction")] if isinstance(sources, list) else [None]
        if not sources or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{path}:{number}: want source (a path or a list of paths), edited (a path), instruction")
        paths = [str(file.parent / source) for source in sources]
        rows.append({"source": paths, "edited": str(file.parent / row["edited"]), "instruction": row["instruction"]})
    if not rows:
        raise InputError(f"{path} holds no edit")
    return rows


def score_rows(model: RewardModel, rows: Sequence[dict[str, Any]], batch: int) -> Iterator[tuple[int, dict, Score]]:
    """(number, row, score) in order; every row is checked before the first one is scored."""
    edits = [Edit(tuple(row["source"]), row["edited"], row["instruction"]) for row in rows]
    model.check(edits)
    for start in range(0, len(edits), batch):
        for number, score in enumerate(model.score(edits[start : start + batch]), start):
            yield number, rows[number], score


def main(_: Sequence[str]) -> None:
    """Command line, see the module."""
    single = (_SOURCE.value, _EDITED.value, _INSTRUCTION.value)
    if bool(_JSONL.value) == any(single):
        raise InputError("give either --source, --edited and --instruction, or --jsonl")
    if not _JSONL.value and not all(single):
        raise InputError("--source, --edited and --instruction must all be given")
    one = {"source": _SOURCE.value, "edited": _EDITED.value, "instruction": _INSTRUCTION.value}
    rows = read_rows(_JSONL.value) if _JSONL.value else [one]
    model = RewardModel.from_pretrained(
        _MODEL.value,
        adapter=_ADAPTER.value or None,
        pixel_policy=_PIXELS.value,
        templates=_TEMPLATES.value or None,
        parsing=_PARSING.value,
        aggregation=_AGGREGATION.value,
        decoding=Decoding(max_new_tokens=_TOKENS.value) if _TOKENS.value else None,
    )
    for name in (_OUT.value, _OVERLAY.value):
        if name and not pathlib.Path(name).absolute().parent.is_dir():
            raise InputError(f"{name}: its folder does not exist")
    results = score_rows(model, rows, _BATCH.value)
    if not _OUT.value:
        _write(results, sys.stdout)
        return
    first = next(results)  # whatever is wrong shows before an older file is overwritten
    with open(_OUT.value, "w", encoding="utf-8") as stream:
        _write([first], stream)
        _write(results, stream)


def _write(results: Iterator[tuple[int, dict, Score]] | list[tuple[int, dict, Score]], stream: TextIO) -> None:
    several = bool(_JSONL.value)
    for number, row, score in results:
        record = {"row": number, **row, **score.to_json()}
        print(json.dumps(record, indent=None if several else 2), file=stream, flush=True)
        if _OVERLAY.value:
            path = pathlib.Path(_OVERLAY.value)
            path = path.with_name(f"{path.stem}-{number:04d}{path.suffix}") if several else path
            sources, edited = [read_image(source) for source in row["source"]], read_image(row["edited"])
            write_png(path, score_overlay(sources, edited, score))


if __name__ == "__main__":
    cli.run(main)
