"""Rewards are composable: a weighted sum of named backends, every part of which is always reported.

The judge is one backend, `guards` another; a sample counts only where every backend with a weight gave a number.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from spatialreward_jax import processes
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.guards import Guards
from spatialreward_jax.reward.protocol import read_edits
from spatialreward_jax.reward.types import NUMBERS, Edit, Score


@dataclasses.dataclass(frozen=True)
class Graded:
    """One backend's word on one edit. reward: 0..1, or None where it has none. measures: named numbers to log."""

    reward: float | None
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    score: Score | None = None


class Backend(Protocol):
    """One source of reward."""

    def __call__(self, edits: Sequence[Edit], scores: Sequence[Score] | None) -> list[Graded]:
        """Grades every edit. scores: what the backends before this one said of regions, or None where none did."""


@dataclasses.dataclass(frozen=True)
class JudgeBackend:
    """A `RewardModel` (anything with `score(edits) -> list[Score]`) as a backend."""

    judge: object

    def __call__(self, edits: Sequence[Edit], scores: Sequence[Score] | None) -> list[Graded]:
        """The judge's rewards; None where an answer could not be read."""
        graded = []
        for score in self.judge.score(list(edits)):
            numbers = {name: getattr(score, name) for name in NUMBERS if score.valid}
            graded.append(Graded(score.reward if score.valid else None, numbers, score))
        return graded


@dataclasses.dataclass(frozen=True)
class Divided:
    """A backend that needs no devices: in a run of several processes each of them grades its share of the edits.

    Every backend is called with all edits in every process. A judge on the mesh answers them together, in programs that
    all processes run; what computes on the host alone would do all the work in each of them.
    """

    backend: Backend

    def begin(self, edits: Sequence[Edit], scores: Sequence[Score] | None) -> Callable[[], list[Graded]]:
        """-> what waits for the grades: the same ones in every process, whoever made them."""
        rows = list(zip(edits, scores if scores is not None else [None] * len(edits)))

        def grade(share):
            edits, own = zip(*share)
            return self.backend(edits, own if scores is not None else None)

        return processes.begin_divided(grade, rows)

    def __call__(self, edits: Sequence[Edit], scores: Sequence[Score] | None) -> list[Graded]:
        """Begins and waits."""
        return self.begin(edits, scores)()


@dataclasses.dataclass(frozen=True)
class GuardsBackend:
    """Pixel measures against the first source, outside the regions that the judge before it named."""

    guards: Guards = dataclasses.field(default_factory=Guards)

    def __call__(self, edits: Sequence[Edit], scores: Sequence[Score] | None) -> list[Graded]:
        """Grades of `Guards`; without a readable judge's answer only those that need no regions."""
        graded = []
        for row, edit in enumerate(read_edits(edits)):
            regions = scores[row].regions if scores is not None and scores[row].valid else None
            measures = self.guards(edit.sources[0], edit.edited, regions)
            graded.append(Graded(measures.pop("reward"), measures))
        return graded


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Rewards of N edits.

    Attributes:
        reward: float64 [N], the weighted sum; NaN where `valid` (bool [N]) is False.
        scores: the judge's scores, or None where no judge is among the backends.
        graded: by backend, what gives its grades, and waits for them where they are not needed for the sum.
    """

    reward: np.ndarray
    valid: np.ndarray
    scores: list[Score] | None
    graded: Mapping[str, Callable[[], Sequence[Graded]]]

    @functools.cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """By "backend/measure" float64 [N], NaN where that backend gave none; "backend/reward" is always there.

        In a run of several processes all must ask for it.
        """
        parts = {}
        for name, grades in self.graded.items():
            graded = grades()
            parts[f"{name}/reward"] = _column([one.reward for one in graded])
            for measure in sorted({key for one in graded for key in one.measures} - {"reward"}):
                parts[f"{name}/{measure}"] = _column([one.measures.get(measure) for one in graded])
        return parts


class WeightedReward:
    """reward = sum over backends of weight * reward. A backend of weight 0 is logged and never invalidates a sample."""

    def __init__(self, backends: Mapping[str, Backend], weights: Mapping[str, float]):
        """backends: by name, called in order, a judge before those that use its regions. weights: one per backend."""
        if set(backends) != set(weights):
            raise InputError(f"weights are for {sorted(weights)}, backends are {sorted(backends)}: use the same names")
        bad = {name: weight for name, weight in weights.items() if not math.isfinite(weight) or weight < 0}
        if bad or not any(weights.values()):
            raise InputError(f"reward weights must be finite, none negative and one positive, got {dict(weights)}")
        self.backends, self.weights = dict(backends), dict(weights)

    def of_phases(self) -> "WeightedReward":
        """The same sum without a judge that neither counts nor tells guards that count where to look.

        Its answers would take most of a small phase; evaluations ask it.
        """
        idle = {"judge"} if not self.weights.get("judge") and not self.weights.get("guards") else set()
        names = [name for name in self.backends if name not in idle]
        return WeightedReward({n: self.backends[n] for n in names}, {n: self.weights[n] for n in names})

    def counted(self, besides: Sequence[str] = ()) -> "WeightedReward":
        """The same sum without the backends that are only logged, but for those named `besides`."""
        weights = {name: weight for name, weight in self.weights.items() if weight or name in besides}
        return WeightedReward({name: self.backends[name] for name in self.backends if name in weights}, weights)

    def __call__(self, edits: Sequence[Edit]) -> Rewards:
        """Grades every edit by every backend.

        One of weight 0 that needs no devices begins last and goes on while the caller uses the sum.
        """
        scores, graded = None, dict.fromkeys(self.backends)
        total, valid = np.zeros(len(edits)), np.ones(len(edits), bool)
        late = [name for name, one in self.backends.items() if isinstance(one, Divided) and not self.weights[name]]
        for name in (name for name in self.backends if name not in late):
            own = self._checked(name, self.backends[name](edits, scores), edits)
            graded[name] = lambda own=own: own
            if own and all(one.score is not None for one in own):
                scores = [one.score for one in own]
            if self.weights[name]:
                reward = _column([one.reward for one in own])
                total += self.weights[name] * reward
                valid &= np.isfinite(reward)
        for name in late:
            begun = self.backends[name].begin(edits, scores)
            graded[name] = lambda name=name, begun=begun: self._checked(name, begun(), edits)
        return Rewards(np.where(valid, total, np.nan), valid, scores, graded)

    @staticmethod
    def _checked(name: str, graded: list[Graded], edits: Sequence[Edit]) -> list[Graded]:
        if len(graded) != len(edits):
            raise ValueError(f"backend {name} graded {len(graded)} of {len(edits)} edits")
        return graded


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)
