"""What a run says of itself while it goes on and at its end: one line a step, time left, compile time, summary file."""

import functools
import json
import math
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax

_COMPILE_EVENTS = ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


class CompileClock:
    """Counts the programs that XLA has compiled (or read from its cache) in this process, and the seconds it took.

    Attributes:
        seconds: lowering and compiling, without tracing (whose events nest and would count twice).
        programs: programs compiled.
    """

    def __init__(self):
        self.seconds, self.programs = 0.0, 0

    def __call__(self, event: str, seconds: float, **_details: str | int) -> None:
        """Listener of `jax.monitoring`."""
        if event in _COMPILE_EVENTS:
            self.seconds += seconds
            self.programs += event == _COMPILE_EVENTS[0]


@functools.cache
def compile_clock() -> CompileClock:
    """The process's one clock; it counts from the first call on."""
    clock = CompileClock()
    jax.monitoring.register_event_duration_secs_listener(clock)
    return clock


class Stopwatch:
    """Seconds that a run has taken, those before an interruption included.

    Args:
        before: what `used` returned then, or None.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        self._before, self._clock = dict(before or {}), compile_clock()
        self._begin, self._compiled = time.monotonic(), self._clock.seconds

    def used(self) -> dict[str, float]:
        """{"seconds": in all, "seconds_compile": of these, lowering and compiling}."""
        now = {"seconds": time.monotonic() - self._begin, "seconds_compile": self._clock.seconds - self._compiled}
        return {name: value + self._before.get(name, 0.0) for name, value in now.items()}


class Progress:
    """Progress line with the time left, at most one every few seconds.

    Args:
        steps: of the whole run.
        start: steps done before (a resumed run).
        say: takes one line.
        every: seconds between two lines; the first and the last step always get one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        say: Callable[[str], None] = print,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._steps, self._say, self._every, self._clock = steps, say, every, clock
        self._compile = compile_clock()
        self._first, self._last_said = start + 1, -math.inf
        self._marks: deque[tuple[int, float]] = deque([(start, self._busy())], maxlen=21)
        self._reported = 0

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes that `step` (1 = first) is done, and says so if it is time; "group/name" is left to TensorBoard."""
        self._marks.append((step, self._busy()))
        now = self._clock()
        if step not in (self._first, self._steps) and now - self._last_said < self._every:
            return
        self._last_said = now
        per_step = self.seconds_per_step()
        shown = [f"{name} {_number(value)}" for name, value in metrics.items() if "/" not in name]
        parts = [f"step {step}/{self._steps}", *shown]
        parts += [f"{per_step:.3g} s/step", f"ETA {duration(per_step * (self._steps - step))}"]
        if self._compile.programs > self._reported:
            parts.append(f"compiled {self._compile.programs} programs in {duration(self._compile.seconds)}")
            self._reported = self._compile.programs
        self._say("  ".join(parts))

    def seconds_per_step(self) -> float:
        """Mean of the last 20 steps, compilation left out."""
        (first, begin), (last, end) = self._marks[0], self._marks[-1]
        return (end - begin) / max(last - first, 1)

    def _busy(self):
        return self._clock() - self._compile.seconds


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min 05 s", "2 h 10 min"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def write_json(path: str | os.PathLike, data: Mapping[str, Any]) -> None:
    """Writes a JSON file at once or not at all; numbers that JSON lacks (NaN, infinities) become null."""
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(_plain(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def _plain(value):
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value):
    return f"{value:.4g}"
