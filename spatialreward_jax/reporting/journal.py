"""What is kept of a run: metrics read one step late, evaluations, and what the summary needs across interruptions."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spatialreward_jax.mesh import on_host
from spatialreward_jax.reporting.progress import Progress
from spatialreward_jax.reporting.records import Records
from spatialreward_jax.reporting.tensorboard import TensorBoard
from spatialreward_jax.rl.metrics import Mean, is_metric


class NonFiniteError(ArithmeticError):
    """A metric became infinite or not a number; the message names it and the step."""


@dataclasses.dataclass
class History:
    """What is remembered of a run across interruptions.

    Attributes:
        first, last: metrics of the first and of the newest step that had them.
        total, count: sum over all steps and number of steps, per metric.
        eval_first, eval_last: numbers of the first and of the newest evaluation, by "evaluator/name".
    """

    first: dict[str, float] = dataclasses.field(default_factory=dict)
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    total: dict[str, float] = dataclasses.field(default_factory=dict)
    count: dict[str, int] = dataclasses.field(default_factory=dict)
    eval_first: dict[str, float] = dataclasses.field(default_factory=dict)
    eval_last: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Takes in one step's metrics."""
        for name, value in metrics.items():
            self.first.setdefault(name, value)
            self.last[name] = value
            self.total[name] = self.total.get(name, 0.0) + value
            self.count[name] = self.count.get(name, 0) + 1

    def add_evaluation(self, values: Mapping[str, float]) -> None:
        """Takes in one evaluation's numbers."""
        for name, value in values.items():
            self.eval_first.setdefault(name, value)
            self.eval_last[name] = value

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the steps that had it; None if none had."""
        return self.total[name] / self.count[name] if name in self.count else None


@dataclasses.dataclass(frozen=True)
class Samples:
    """Goes with a step's metrics and is never logged: what to name when the step turns out not to be finite.

    Attributes:
        names: one per sample, for people.
        finite: bool [samples] array, False where the samples themselves were not finite already.
    """

    names: Sequence[str]
    finite: Any

    def __str__(self) -> str:
        bad = [name for name, good in zip(self.names, on_host(self.finite)) if not good]
        if bad:
            return f"not finite already when sampled: {', '.join(bad)}"
        return f"all samples were finite when sampled: {', '.join(self.names)}"


def to_numbers(metrics: Mapping[str, Any], step: int) -> dict[str, float]:
    """Metrics (`Mean`, `Peak`, scalar arrays, numbers) as floats, without `Samples` and `Mean`s of nothing. Waits.

    Raises:
        NonFiniteError: naming every value that is not finite, the step, and the samples where they are known.
    """
    samples = [m for m in metrics.values() if isinstance(m, Samples)]
    metrics = jax.device_get({k: m for k, m in metrics.items() if not isinstance(m, Samples)})
    counted = {k: m for k, m in metrics.items() if not (isinstance(m, Mean) and np.sum(m.count) == 0)}
    numbers = {k: float(m.collapse().value() if is_metric(m) else m) for k, m in counted.items()}
    bad = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        seen = "".join(f"; {each}" for each in samples)
        raise NonFiniteError(
            f"step {step}: {', '.join(bad)}{seen}; this step is not saved; a lower lr, another seed or float32 may help"
        )
    return numbers


class Journal:
    """Writes progress lines, event files and the record of one run; keeps its `History`.

    Args:
        workdir: event files go to its `tensorboard` folder; for the record see `records`.
        steps, start: of the whole run, and done before.
        history: is added to.
        write: whether this process prints and writes; the history is kept in every process.
        say: takes a line.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: int,
        start: int,
        history: History,
        *,
        write: bool = True,
        say: Callable[[str], None] = print,
    ):
        self._history, self._pending = history, None
        self._progress = Progress(steps, start=start, say=say)
        self._board = TensorBoard(workdir / "tensorboard", start) if write else None
        self._records = Records(workdir, start, say=say) if write else None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keeps this step's metrics, and reads those of the step before, whose devices are done by now."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reads the metrics that are still waiting. Raises NonFiniteError."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        numbers = to_numbers(metrics, step)
        self._history.add(numbers)
        self._progress.step(step, numbers)
        self._write(step, numbers | {"seconds_per_step": self._progress.seconds_per_step()})

    def evaluate(
        self, evaluators: Mapping[str, Callable[[Any, int], Iterable[tuple[str, Any]]]], state: Any, step: int
    ) -> None:
        """Runs every evaluator: numbers into curves and history, pictures (uint8 [H, W, 3]) into the files."""
        for group, evaluator in evaluators.items():
            for name, value in evaluator(state, step):
                name = f"{group}/{name}"
                if np.ndim(value) == 3:
                    if self._board:
                        self._board.image(step, name, np.asarray(value))
                        self._records.picture(step, name, np.asarray(value))
                    continue
                numbers = to_numbers({name: value}, step)
                self._history.add_evaluation(numbers)
                self._write(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._board:
            self._board.scalars(step, numbers)
            self._records.numbers(step, numbers)

    def close(self) -> None:
        """Reads what waits and closes the files."""
        self.flush()
        if self._board:
            self._board.close()
