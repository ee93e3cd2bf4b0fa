"""One cell of a study, an arm at a seed: run once, kept as JSON, never run again."""

import ast
import dataclasses
import hashlib
import json
import math
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from spatialreward_jax.data.editworld import write_rankings
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import ASSETS
from spatialreward_jax.reporting.progress import write_json
from spatialreward_jax.studies.arms import RANKINGS, STUDIES, Arm, Place, Quotient, Value

FILE = "cell.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """values: column -> number, or None where the arm has none. seconds: of each command.

    commands: as typed, with WORKDIR for the folder of all studies, so that it can be moved.
    """

    study: str
    arm: str
    seed: int
    commands: list[str]
    seconds: list[float]
    values: dict[str, float | None]


def find_arm(study: str, arm: str) -> Arm:
    """Raises InputError for unknown names."""
    if study not in STUDIES:
        raise InputError(f"study {study!r} is unknown: choose one of {', '.join(STUDIES)}")
    if arm not in STUDIES[study].arms:
        raise InputError(f"study {study} has no arm {arm!r}: choose one of {', '.join(STUDIES[study].arms)}")
    return STUDIES[study].arms[arm]


def place_of(root: pathlib.Path, study: str, arm: str, seed: int) -> Place:
    """Folders of a cell below the folder of all studies."""
    return Place(root, root / study / arm / f"seed{seed}", root / "rankings" / f"seed{seed}", seed)


def typed(words: list[str]) -> str:
    """A command as a user would type it."""
    return shlex.join(["python", "-m", f"spatialreward_jax.{words[0]}", *words[1:]])


def _recorded(root: pathlib.Path, commands: list[list[str]]) -> list[str]:
    return [typed([word.replace(str(root), "WORKDIR") for word in words]) for words in commands]


def claim(root: pathlib.Path) -> None:
    """Marks a folder of studies with what its commands start from: `configs/` here and the embedded checkpoints.

    Raises InputError where it was marked with others, whose cells would not be comparable.
    """
    mark = hashlib.sha256()
    for file in sorted(pathlib.Path("configs").glob("*.py")):
        mark.update(ast.dump(ast.parse(file.read_text(encoding="utf-8"))).encode())  # comments do not count
    for file in sorted((ASSETS / "embedded").rglob("*.safetensors")):
        mark.update(file.read_bytes())
    origin = root / "origin"
    if not origin.is_file() and not any(root.glob(f"*/*/seed*/{FILE}")):
        root.mkdir(parents=True, exist_ok=True)
        origin.write_text(mark.hexdigest(), encoding="utf-8")
    elif not origin.is_file() or origin.read_text(encoding="utf-8") != mark.hexdigest():
        raise InputError(f"{root} has cells of other configs or embedded checkpoints than today's: give a new workdir")


def seeds_of(root: pathlib.Path, study: str) -> set[int]:
    """Seeds of which any cell of the study was run."""
    return {int(file.parent.name.removeprefix("seed")) for file in (root / study).glob(f"*/seed*/{FILE}")}


def read_cell(root: pathlib.Path, study: str, arm: str, seed: int) -> Cell | None:
    """A cell that was run, or None.

    Raises InputError for one that was run by other commands than today's, whose numbers would not be comparable.
    """
    place = place_of(root, study, arm, seed)
    file = place.folder / FILE
    if not file.is_file():
        return None
    try:
        cell = Cell(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): remove {place.folder} and run the cell again") from error
    if cell.commands != _recorded(root, find_arm(study, arm).commands(place)):
        raise InputError(f"{file} comes from other commands than today's: remove {place.folder} and run it again")
    return cell


def run_cell(root: pathlib.Path, study: str, arm: str, seed: int, say: Callable[[str], None] = print) -> Cell:
    """Runs a cell, or returns the one that was run; programs that were interrupted go on where they stopped.

    Raises InputError when a command fails.
    """
    cell = read_cell(root, study, arm, seed)
    if cell is not None:
        return cell
    found, place = find_arm(study, arm), place_of(root, study, arm, seed)
    for other in found.needs:
        run_cell(root, *other, seed, say)
    place.rankings.parent.mkdir(parents=True, exist_ok=True)
    write_rankings(place.rankings, "test", RANKINGS, seed)
    place.folder.mkdir(parents=True, exist_ok=True)
    for last, words in found.shared(place):
        if not last.is_file():
            _run(words, f"{study}/{arm}/seed{seed}", say)
    commands = found.commands(place)
    seconds = [
        _run(words, f"{study}/{arm}/seed{seed}", say, place.folder / f"seconds{number}")
        for number, words in enumerate(commands)
    ]
    if sum(seconds) > 60 * found.minutes:
        say(f"WARNING: {sum(seconds) / 60:.1f} minutes, more than the arm's {found.minutes:g}")
    values = read_values(place.folder, found.values)
    cell = Cell(study, arm, seed, _recorded(root, commands), seconds, values)
    write_json(place.folder / FILE, dataclasses.asdict(cell))
    shutil.rmtree(place.folder / "train" / "checkpoints", ignore_errors=True)  # the cell is done: nothing resumes
    return cell


def _run(words: list[str], cell: str, say: Callable[[str], None], spent: pathlib.Path | None = None) -> float:
    """Runs a program -> seconds, with those of earlier attempts, which the file `spent` keeps.

    Ctrl-C reaches the program, too, which is given the time to save what it has. Raises InputError when it fails.
    """
    say(typed(words))
    start = time.monotonic()
    before = float(spent.read_text(encoding="utf-8")) if spent and spent.is_file() else 0.0
    program = subprocess.Popen([sys.executable, "-m", f"spatialreward_jax.{words[0]}", *words[1:]])
    try:
        status = program.wait()
    except KeyboardInterrupt:
        program.wait()
        raise
    finally:
        seconds = round(before + time.monotonic() - start, 1)
        if spent:
            spent.write_text(str(seconds), encoding="utf-8")
    if status:
        raise InputError(f"cell {cell}: status {status} of {typed(words)}")
    return seconds


def read_values(folder: pathlib.Path, columns: Mapping[str, Value | Quotient]) -> dict[str, float | None]:
    """What the columns say; None where a file has no such key. Raises InputError without the file."""
    values: dict[str, float | None] = {}
    for name, column in columns.items():
        if isinstance(column, Value):
            values[name] = _look_up(folder, column)
            continue
        parts = [values[part] for part in (column.over, *column.under)]
        known = all(part is not None for part in parts) and all(parts[1:])
        values[name] = column.times * parts[0] / math.prod(parts[1:]) if known else None
    return values


def _look_up(folder: pathlib.Path, value: Value) -> float | None:
    file = folder / value.file
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    for key in value.keys:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return None
    return None if found is None else float(found)
