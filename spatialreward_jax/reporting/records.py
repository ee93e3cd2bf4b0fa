"""A run's own record, beside its TensorBoard files: every number as a line of JSON, every picture as a PNG file.

WORKDIR/metrics.jsonl           {"step": 3, "reward": 0.41, "update1/loss": ...}, evaluations as "evaluator/name"
WORKDIR/pictures/NAME/STEP.png  "/" in a name becomes "."
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png

METRICS = "metrics.jsonl"
PICTURES = "pictures"

Curves = dict[str, list[tuple[int, float]]]
"""name -> points (step, value), by step."""


class Records:
    """Writer of one run's record. What an interrupted run had recorded beyond `start` steps is dropped.

    A line or picture that cannot be written (no space left) is reported once, and the run goes on without it.

    Args:
        workdir: of the run.
        start: steps already done; 0 begins anew.
        say: takes a line.
    """

    def __init__(self, workdir: pathlib.Path, start: int = 0, *, say: Callable[[str], None] = print):
        self._pictures, self._say = workdir / PICTURES, say
        self._path = path = workdir / METRICS
        self._whole = True
        kept = [line for line in _lines(path) if 0 < start >= json.loads(line)["step"]]
        part = path.with_name(f".{METRICS}.part")
        try:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            part.replace(path)
            for old in self._pictures.glob("*/*.png"):
                if not 0 < start >= int(old.stem):
                    old.unlink()
        except OSError as error:
            raise InputError(f"cannot write in {workdir}: {error.strerror}") from error

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """One line of finite numbers."""
        line = json.dumps({"step": step} | {name: float(value) for name, value in values.items()})
        self._try(lambda: self._append(f"{line}\n"))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """One picture, uint8 [H, W, 3]."""
        folder = self._pictures / name.replace("/", ".")
        self._try(lambda: folder.mkdir(parents=True, exist_ok=True))
        self._try(lambda: write_png(folder / f"{step:08d}.png", np.asarray(image)))

    def _append(self, line: str) -> None:
        """The whole line or nothing of it, so that the next one does not go on from half a line."""
        size = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)
            raise

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, InputError) as error:  # the second from `write_png`
            if self._whole:
                self._say(f"WARNING: the run's record is incomplete: {error} ({self._path.parent})")
            self._whole = False


def read_curves(workdir: str | os.PathLike) -> Curves:
    """All numbers of a run's record. Raises InputError where there is none."""
    path = pathlib.Path(workdir) / METRICS
    if not path.is_file():
        raise InputError(f"{workdir} holds no {METRICS}: give the workdir of a training run")
    curves: Curves = {}
    for line in _lines(path):
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def read_pictures(workdir: str | os.PathLike) -> dict[str, list[tuple[int, pathlib.Path]]]:
    """All pictures of a run's record: name (with "." for "/") -> (step, file), by step."""
    found: dict[str, list[tuple[int, pathlib.Path]]] = {}
    for path in sorted((pathlib.Path(workdir) / PICTURES).glob("*/*.png")):
        found.setdefault(path.parent.name, []).append((int(path.stem), path))
    return found


def _lines(path: pathlib.Path) -> list[str]:
    """Whole lines; one that was cut off by a kill is dropped."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()
