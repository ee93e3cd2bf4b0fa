"""How well the oracle reads pictures: its error against the exact scores, by kind of failure.

    python -m spatialreward_jax.data.editworld.oracle_error --count=64

prints, for each failure and dimension (0..25), the mean absolute error and its 95th percentile, for the reward (0..1)
also the mean error and how often two candidates of one edit come out in the wrong order.
"""

from __future__ import annotations

import collections

import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.editworld.candidates import FAILURES, make_candidate
from spatialreward_jax.data.editworld.edits import sample_edit
from spatialreward_jax.data.editworld.oracle import oracle_scores
from spatialreward_jax.data.editworld.rankings import LEAST_GAP, exact_reward
from spatialreward_jax.data.editworld.rule import Scores
from spatialreward_jax.data.editworld.scenes import SPLITS
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation


def measure(split: str, count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], float]:
    """-> (failure -> errors [N, 5]: four dimensions in 0..25 and the reward in 0..1, oracle less exact; the share of
    pairs of candidates of one edit, exact rewards at least LEAST_GAP apart, that the oracle orders wrongly)."""
    aggregate, errors, wrong = Aggregation(), collections.defaultdict(list), []
    for index in range(count):
        sample, rng, rewards = sample_edit(split, index, seed=seed), np.random.default_rng((seed, index)), []
        for failure in FAILURES:
            candidate = make_candidate(sample, failure, rng)
            if candidate is None:
                continue
            read = oracle_scores(candidate.image(), sample)
            rewards.append((exact_reward(candidate), aggregate(read[:2], read[2:]).reward))
            errors[failure].append([*np.subtract(read, candidate.scores), rewards[-1][1] - rewards[-1][0]])
        for i, (exact, got) in enumerate(rewards):
            wrong += [(exact - e) * (got - g) <= 0 for e, g in rewards[:i] if abs(exact - e) >= LEAST_GAP]
    return {failure: np.array(rows) for failure, rows in errors.items()}, float(np.mean(wrong))


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    flags.DEFINE_integer("count", 64, "Edits to measure; each gets one candidate of every failure that it allows.")
    flags.DEFINE_enum("split", "validation", SPLITS, "Of the edits.")
    flags.DEFINE_integer("seed", 0, "Of the edits.")


def main(_argv: list[str]) -> None:
    """Prints the table."""
    given = flags.FLAGS
    if given.count < 1:
        raise InputError(f"--count={given.count}: measure at least one edit")
    errors, wrong = measure(given.split, given.count, given.seed)
    print(f"{'failure':16s}{'n':>5s}" + "".join(f"{name:>16s}" for name in (*Scores._fields, "reward")))
    for failure, rows in errors.items():
        cells = [f"{np.abs(c).mean():.2f} (95% {np.quantile(np.abs(c), 0.95):.1f})" for c in rows.T[:4]]
        reward = f"{np.abs(rows[:, 4]).mean():.3f} ({rows[:, 4].mean():+.3f})"
        print(f"{failure:16s}{len(rows):5d}" + "".join(f"{cell:>16s}" for cell in (*cells, reward)))
    print(f"pairs of one edit in the wrong order: {100 * wrong:.1f}%")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
