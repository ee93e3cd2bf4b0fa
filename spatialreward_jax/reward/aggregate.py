"""Four sub-scores to one overall score.

Sources: arXiv 2602.07458 for the weighted form and its weights; the min and mean forms are those of the official
benchmark programs (VIEScore's geometric mean).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.types import SCORE_RANGE

KINDS = ("weighted", "min", "mean")
UNIT = SCORE_RANGE / 10
"""Sub-score points per point of the 0..10 scale."""


class Overall(NamedTuple):
    """overall, semantic and quality, each on 0..10 (unclamped for answers out of range when `clamp` is off)."""

    overall: float
    semantic: float
    quality: float

    @property
    def reward(self) -> float:
        """overall / 10."""
        return self.overall / 10


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """How four sub-scores in 0..25 become one number in 0..10.

    With (s1, s2) the semantic and (n, a) the quality sub-scores:
        weighted: SC = (w1 s1 + (1 - w1) s2) / 2.5, PQ = (w3 n + (1 - w3) a) / 2.5, overall = SC^p PQ^(1 - p)
        min:      overall = sqrt(min(s1, s2) min(n, a)) / 2.5
        mean:     overall = sqrt(mean(s1, s2) mean(n, a)) / 2.5

    Attributes:
        kind: one of `KINDS`. success: w1. naturalness: w3. semantic_power: p.
        clamp: keep SC, PQ (weighted) or the overall score (min, mean) within 0..10, as the official server does; its
            benchmark programs do not.
    """

    kind: str = "weighted"
    success: float = 0.6
    naturalness: float = 0.5
    semantic_power: float = 0.8
    clamp: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"aggregation {self.kind!r} is unknown: choose one of {', '.join(KINDS)}")
        for name in ("success", "naturalness", "semantic_power"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"aggregation weight {name}={getattr(self, name)} lies outside 0..1")

    @property
    def name(self) -> str:
        """Kind with whatever differs from the published settings, e.g. `weighted` or `weighted(success=0.7)`."""
        changed = [
            f"{f.name}={getattr(self, f.name):g}"
            for f in dataclasses.fields(self)
            if f.name not in ("kind", "clamp") and getattr(self, f.name) != f.default
        ]
        return f"{self.kind}({', '.join(changed)})" if changed and self.kind == "weighted" else self.kind

    def __call__(self, semantic: Sequence[float], quality: Sequence[float]) -> Overall:
        """(s1, s2) and (n, a) in 0..25 -> `Overall`. Raises ValueError where the formula has no finite value."""
        (s1, s2), (n, a) = semantic, quality
        if not all(map(math.isfinite, (s1, s2, n, a))):
            raise ValueError(f"scores {s1:g}, {s2:g}, {n:g}, {a:g} are not all finite")
        if self.kind == "weighted":
            sc = self._bound((self.success * s1 + (1 - self.success) * s2) / UNIT)
            pq = self._bound((self.naturalness * n + (1 - self.naturalness) * a) / UNIT)
            if sc < 0 or pq < 0:
                raise ValueError(f"no power of a negative part exists: semantic {sc:g}, quality {pq:g}")
            return Overall(sc**self.semantic_power * pq ** (1 - self.semantic_power), sc, pq)
        sc, pq = (min(s1, s2), min(n, a)) if self.kind == "min" else ((s1 + s2) / 2, (n + a) / 2)
        if sc * pq < 0:
            raise ValueError(f"no root of a negative product exists: semantic {sc:g}, quality {pq:g}")
        return Overall(self._bound(math.sqrt(sc * pq) / UNIT), sc / UNIT, pq / UNIT)

    def _bound(self, value: float) -> float:
        return max(0.0, min(10.0, value)) if self.clamp else value
