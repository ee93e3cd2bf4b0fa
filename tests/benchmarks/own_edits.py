"""Whether a judge is fit to reward an editor: its word against the truth on edits that an RL run kept.

    python -m spatialreward_jax.train --config=configs/grpo.py --workdir=RUN --config.keep_edits=True
    python tests/benchmarks/own_edits.py --run=RUN --model=embedded --constrained --score_mode=expected

Prints, over all edits, the correlation of the judge's reward with the oracle's and their means and deviations; within
the groups of one request and phase, which is all that GRPO looks at, the correlation of what is left after each group's
mean and the share of pairs, LEAST_GAP apart in truth, that both order alike; and the same for each of the four scores.
"""

import json

import numpy as np
from absl import flags

from spatialreward_jax import cli, judge_flags
from spatialreward_jax.data.editworld.rankings import LEAST_GAP
from spatialreward_jax.data.editworld.rule import RANGE, Scores
from spatialreward_jax.data.own_edits import OwnEdits
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.types import Edit


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("run", "", "Workdir of an RL run on EditWorld with keep_edits.")
    flags.DEFINE_string("model", "embedded", "Judge: a folder in the Qwen3-VL layout, or embedded.")
    flags.DEFINE_integer("edits", 0, "Edits to judge, whole groups spread over the run; 0: all of them.", lower_bound=0)
    judge_flags.define_writing()
    flags.DEFINE_integer("group", 8, "Edits of a request in a phase, as the run had it.", lower_bound=2)


def agreement(said: np.ndarray, true: np.ndarray, group: int) -> dict[str, float]:
    """Numbers of the report for what a judge said and what is true, float [N] in 0..1, groups one after the other."""
    groups = lambda x: x.reshape(-1, group)
    apart = lambda x: (groups(x)[:, :, None] - groups(x)[:, None, :])[:, *np.triu_indices(group, 1)].ravel()
    centred = lambda x: (groups(x) - groups(x).mean(1, keepdims=True)).ravel()
    clear = np.abs(apart(true)) >= LEAST_GAP
    return {
        "correlation": float(np.corrcoef(said, true)[0, 1]),
        "correlation_within": float(np.corrcoef(centred(said), centred(true))[0, 1]),
        "pairs_within": float(np.mean((apart(said) * apart(true) > 0)[clear])),
        "pairs": int(clear.sum()),
        "mean": float(said.mean()),
        "mean_true": float(true.mean()),
        "deviation_within": float(centred(said).std()),
        "deviation_within_true": float(centred(true).std()),
    }


def main(_argv: list[str]) -> None:
    """Reads, asks and prints JSON."""
    given = flags.FLAGS
    if not given.run:
        raise InputError("--run=WORKDIR of an RL run with keep_edits is needed")
    kept = OwnEdits([given.run])
    if len(kept) < given.group:
        raise InputError(f"{given.run} holds {len(kept)} edits, less than one group of {given.group}")
    groups = np.arange(len(kept) // given.group)
    groups = groups[:: max(1, len(kept) // given.edits)] if given.edits else groups
    rows = [kept[index] for index in (groups[:, None] * given.group + np.arange(given.group)).ravel()]
    judge = RewardModel.from_pretrained(given.model, **judge_flags.writing(given))
    scores = judge.score([Edit(source, edited, seen.sample.instruction) for seen, source, edited in rows])
    aggregate = Aggregation()
    true = np.array([aggregate(seen.scores[:2], seen.scores[2:]).reward for seen, _, _ in rows])
    report = {"edits": len(rows), "reward": agreement(np.array([s.reward for s in scores]), true, given.group)}
    for name in Scores._fields:
        said, exact = (
            [getattr(s, name) / RANGE for s in found] for found in (scores, [seen.scores for seen, *_ in rows])
        )
        report[name] = agreement(np.array(said), np.array(exact), given.group)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
