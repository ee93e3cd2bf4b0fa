"""What a recipe gives to the one training loop (`spatialreward_jax.train`)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from spatialreward_jax.reporting.journal import History
from spatialreward_jax.reporting.report import Caption, Chart

Evaluator = Callable[[Any, int], Iterable[tuple[str, float | np.ndarray]]]
"""evaluator(state, step) yields (name, number) or (name, picture uint8 [H, W, 3]); it must not change the state."""

HELDOUT = 2**31 - 1
"""Stands for the number of a phase or batch in the draws of evaluations: training never has it."""


class Batches(Protocol):
    """Endless iterator whose position can be stored; grain's iterators are such."""

    def __next__(self) -> Any:
        """The next batch, the same in every run with the same config."""

    def get_state(self) -> dict[str, Any]:
        """JSON-able position behind the batch that came last; the same in all processes."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned."""


class Task(Protocol):
    """A recipe, ready to run: it owns the nets that do not change, the data and the jitted functions.

    A step of the loop is one `step` call on one batch, however many optimiser updates that is. Everything that changes
    from step to step stands in the state (keys and counters too) or in `record()`: that is what makes an interrupted
    and resumed run equal to an uninterrupted one.
    """

    evaluators: Mapping[str, Evaluator]
    """By name; run before the first step, every `eval_every` steps, and after the last."""

    charts: Sequence[Chart | Caption]
    """Curves of the run's report, and what its pictures show."""

    def init(self, key: Any) -> Any:
        """Train state from scratch: pytree of jax arrays, placed on the mesh. `key` is a jax PRNG key."""

    def batches(self) -> Batches:
        """The batches of this process, from the start."""

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """(next state, metrics); `state` may be donated.

        Metrics are `rl.metrics.Mean` or `Peak`, scalar arrays or numbers, equal in all processes; they are read one
        step later, so returning device arrays keeps the devices busy. A `Mean` of nothing is left out; a value that is
        not finite stops the run, with an error that names what a `journal.Samples` among the metrics holds.
        """

    def record(self) -> dict[str, Any]:
        """JSON-able state that the host keeps beside the train state; stored with every checkpoint."""

    def restore_record(self, record: dict[str, Any]) -> None:
        """Takes back what `record` returned, before the first step of a resumed run."""

    def export(self, state: Any) -> None:
        """Writes the trained model in the layout that users load, into the run's workdir; called once, at the end.

        All processes call it together; only the first one writes.
        """

    def summary(self, history: History) -> dict[str, Any]:
        """The recipe's own keys of `summary.json`; called once, at the end."""
