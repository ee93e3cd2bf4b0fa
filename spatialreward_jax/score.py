"""Scores edits: JSON out, and a picture with the judge's boxes where one is asked for.

    python -m spatialreward_jax.score --model=embedded --source=a.png --edited=b.png --instruction="paint it red"
    python -m spatialreward_jax.score --model=JUDGE --jsonl=edits.jsonl --out=scores.jsonl --overlay=boxes.png

A line of --jsonl is an object with `source` (a path or a list of paths), `edited` (a path) and `instruction`; paths are
relative to the file. One edit gives one indented JSON object, --jsonl one object a line, in order. --attention=FILE.png
draws where the judge looked, a row of pictures for each region that it spoke of. With --jsonl a picture is named by its
row, NAME-0000.png, and NAME.json sums the measures up: means with 95% intervals over all edits, and how alike the
edits' maps are (`source_consistency`, `edited_consistency`). Keys of an object:

    row, source, edited, instruction                        the edit (row: number of the line, from 0)
    valid                                                   whether both of the judge's answers could be read (with
                                                            --ensemble: of one draw at least, whose mean counts)
    overall 0..10, reward 0..1, semantic, quality 0..10     null where valid is false
    success, no_overedit, naturalness, artifact_free        0..25 each, as the judge gave them; null where invalid
    regions                                                 id, label, bbox_2d (0..1000), box (pixels), flags
    reasoning, quality_reasoning, raw_sc, raw_pq            the judge's words and whole answers
    neutral                                                 how many sub-scores the official parsing made up (12.5)
    errors, warnings                                        why it is invalid; what was odd
    identity                                                model, revision, template, pixel_policy, parsing,
                                                            aggregation, decoding: what two scores must share to compare
    attention                                               with --attention alone, null where there is no SC answer:
                                                            source_entropy, edited_entropy, entropy_gap (nats),
                                                            concentration (Gini), source_mass, edited_mass: means, and
                                                            `layers`: each per layer and group of heads
"""

import contextlib
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from spatialreward_jax import cli, judge_flags
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.attention_maps import probe_of, save_attention
from spatialreward_jax.evaluation.diagnostics import summary
from spatialreward_jax.io.images import read_image, write_png
from spatialreward_jax.reporting.overlay import score_overlay
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.protocol import read_edits
from spatialreward_jax.reward.types import Edit, Score


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    judge_flags.define(model="embedded")
    flags.adopt_module_key_flags(judge_flags)
    flags.DEFINE_multi_string("source", [], "Image before the edit; repeat the flag for several.")
    flags.DEFINE_string("edited", "", "Image after the edit.")
    flags.DEFINE_string("instruction", "", "What the edit was asked to do.")
    flags.DEFINE_string("jsonl", "", "File with one edit a line, instead of the three flags above.")
    flags.DEFINE_string("out", "", "File for the JSON; by default it is printed.")
    flags.DEFINE_string("overlay", "", "PNG of source | edited with boxes; with --jsonl one a row: NAME-0000.png.")
    flags.DEFINE_string("attention", "", "PNG of where the judge looked; with --jsonl NAME-0000.png and NAME.json.")


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a --jsonl file, paths resolved, all fields checked. Raises InputError naming file and line."""
    file = pathlib.Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # no `splitlines`: JSON may hold U+2028
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


def to_edits(rows: Sequence[dict[str, Any]]) -> list[Edit]:
    """Rows -> edits, every image decoded once as a check. Raises InputError naming the row."""
    edits = [Edit(tuple(row["source"]), row["edited"], row["instruction"]) for row in rows]
    for number, edit in enumerate(edits):
        read_edits([edit], first=number)
    return edits


def scores(model: RewardModel, edits: Sequence[Edit], batch: int) -> Iterator[Score]:
    """Scores in order, `batch` edits at a time; every edit is checked before the first one is scored."""
    model.check(edits)
    for start in range(0, len(edits), batch):
        yield from model.score(edits[start : start + batch])


def picture_path(name: str, number: int, *, many: bool) -> pathlib.Path:
    """A picture's file: as named, or NAME-0000.png where there are many."""
    path = pathlib.Path(name)
    return path.with_name(f"{path.stem}-{number:04d}{path.suffix}") if many else path


class Attention:
    """Pictures and measures of a judge's attention. Raises InputError for a judge that is no net of ours."""

    def __init__(self, model: RewardModel):
        self.model, self.probe = model, probe_of(model)
        self.samples: list[list[np.ndarray]] = []

    def show(self, edit: Edit, score: Score, path: pathlib.Path) -> dict[str, Any] | None:
        """Draws one edit's picture -> its measures; None, and no picture, where the judge gave no SC answer."""
        if not score.raw_sc:
            return None
        maps = save_attention(path, self.model, edit, score, probe=self.probe)
        self.samples.append(maps.grouped())
        return maps.diagnosis().to_json()

    def sum_up(self, path: pathlib.Path) -> None:
        """Writes the measures over all edits shown, if any, as JSON."""
        if self.samples:
            groups = self.samples[0][0].shape[1]
            found = {"edits": len(self.samples), **summary(self.samples, groups)}
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    one = {"source": given.source, "edited": given.edited, "instruction": given.instruction}
    if bool(given.jsonl) == any(one.values()):
        raise InputError("give either --source, --edited and --instruction, or --jsonl")
    if not given.jsonl and not all(one.values()):
        raise InputError("--source, --edited and --instruction must all be given")
    for name in (given.out, given.overlay, given.attention):
        if name and not pathlib.Path(name).absolute().parent.is_dir():
            raise InputError(f"{name}: its folder does not exist")
    rows = read_rows(given.jsonl) if given.jsonl else [one]
    edits = to_edits(rows)
    model = judge_flags.load(given)
    named = functools.partial(picture_path, many=bool(given.jsonl))
    attention = Attention(model) if given.attention else None
    results = scores(model, edits, given.batch_size)
    first = next(results)  # whatever is wrong shows before an older file is overwritten
    with open(given.out, "w", encoding="utf-8") if given.out else contextlib.nullcontext(sys.stdout) as stream:
        for number, (row, score) in enumerate(zip(rows, itertools.chain([first], results))):
            record = {"row": number, **row, **score.to_json()}
            if attention:
                record["attention"] = attention.show(edits[number], score, named(given.attention, number))
            print(json.dumps(record, indent=None if given.jsonl else 2), file=stream, flush=True)
            if given.overlay:
                sources, edited = [read_image(source) for source in row["source"]], read_image(row["edited"])
                write_png(named(given.overlay, number), score_overlay(sources, edited, score))
    if attention and given.jsonl:
        attention.sum_up(pathlib.Path(given.attention).with_suffix(".json"))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
