"""Rows of published data sets on disk, one at a time: parquet (as Hugging Face writes it), jsonl, json.

Images stay what they are, a path or the bytes of a file, until somebody needs their pixels.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.records import Box, Broken, box_of

Made = TypeVar("Made")

_SUFFIXES = (".parquet", ".jsonl", ".json")
_BATCH = 8  # rows of a parquet file held at a time: images make rows heavy


def data_files(data: str | pathlib.Path, *, suffixes: tuple[str, ...] = _SUFFIXES) -> list[pathlib.Path]:
    """The files of a data set: `data` itself, or all files of the first of `suffixes` found below it, sorted."""
    data = pathlib.Path(data)
    if data.is_file():
        return [data]
    for suffix in suffixes:
        if files := sorted(path for path in data.rglob(f"*{suffix}") if not path.name.startswith(".")):
            return files
    raise InputError(f"no {', '.join(suffixes)} file at {data}: point --data at the downloaded benchmark")


def count_rows(path: pathlib.Path) -> int:
    """Rows in a file, without reading the images of a parquet file."""
    if path.suffix == ".parquet":
        return _parquet(path).metadata.num_rows
    if path.suffix == ".jsonl":
        with open(path, "rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    return len(_json_rows(path))


def usable(
    paths: Sequence[pathlib.Path], make: Callable[[Mapping[str, Any], pathlib.Path], Made]
) -> Iterator[Made | Broken]:
    """What `make(row, path)` reads out of every row of some files; see `attempt`."""
    for path in paths:
        for index, row in read_rows(path):
            yield attempt(make, row, path, f"{path.name}[{index}]")


def attempt(
    make: Callable[[Mapping[str, Any], pathlib.Path], Made],
    row: Mapping[str, Any] | Broken,
    path: pathlib.Path,
    where: str,
) -> Made | Broken:
    """`make(row, path)`; whatever a published row may hold, one that cannot be used comes as `Broken`, never raises."""
    if isinstance(row, Broken):
        return row
    try:
        return make(row, path)
    except InputError as error:
        return Broken(where, str(error))
    except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        return Broken(where, _short(error))


def read_rows(path: pathlib.Path) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    """-> (index, row) for each row of a file; what cannot be read comes as `Broken`.

    Behind a damaged page of a parquet file nothing is read: one `Broken` stands for the rest.
    """
    if path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path))
    elif path.suffix == ".jsonl":
        with open(path, encoding="utf-8", errors="replace") as lines:
            numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            for index, (number, line) in enumerate(numbered):
                yield index, _object(line, f"{path.name}:{number}")
    else:
        yield from enumerate(_json_rows(path))


def field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of `names` that the row has and that is not None. Raises InputError when there is none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise InputError(f"no field {' or '.join(names)} (the row has {', '.join(sorted(row))})")


def text(row: Mapping[str, Any], *names: str) -> str:
    """Like `field`, for text that must not be blank."""
    value = field(row, *names)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"field {names[0]} is {value!r}: want text")
    return value


def image(cell: Any, folder: pathlib.Path) -> bytes | pathlib.Path:
    """An image cell -> the bytes of the file, or its path.

    cell: bytes, a path (relative ones are below `folder`; a path that is not there is also looked for by its name in
    `folder` and `folder/images`), or Hugging Face's {"bytes", "path"}. Raises InputError for anything else.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray):
        if not cell:
            raise InputError("an image of 0 bytes")
        return bytes(cell)
    if isinstance(cell, str | pathlib.Path) and str(cell):
        name = pathlib.PurePosixPath(cell).name  # lists made on another machine: look for the file beside the list
        for path in (folder / cell, folder / name, folder / "images" / name):
            if os.path.isfile(path):  # False, too, for what cannot be a path
                return path
        raise InputError(f"no image file at {str(folder / cell)[:200]}")
    raise InputError(f"an image is {type(cell).__name__}: want bytes, a path, or an object with bytes or path")


def images(cells: Any, folder: pathlib.Path, *, at_least: int) -> tuple[bytes | pathlib.Path, ...]:
    """A list of image cells, at least so many; see `image`."""
    if not isinstance(cells, list | tuple) or len(cells) < at_least:
        count = len(cells) if isinstance(cells, list | tuple) else "no list"
        raise InputError(f"{count} images where at least {at_least} are wanted")
    return tuple(image(cell, folder) for cell in cells)


def truth_boxes(row: Mapping[str, Any], count: int) -> tuple[tuple[Box, ...] | None, ...]:
    """Optional column `edit_regions`: per edited image a list of boxes [x1, y1, x2, y2] in 0..1000. () without it."""
    cells = row.get("edit_regions")
    if cells is None:
        return ()
    if not isinstance(cells, list | tuple) or len(cells) != count:
        raise InputError(f"edit_regions is {str(cells)[:80]}: want a list of boxes for each of {count} edited images")
    return tuple(None if boxes is None else tuple(map(box_of, boxes)) for boxes in cells)


def _parquet(path: pathlib.Path):
    import pyarrow.parquet  # here, so that reading jsonl does not load it

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no readable parquet file ({str(error).splitlines()[0]}): download it again"
        ) from error


def _parquet_rows(path: pathlib.Path) -> Iterator[Mapping[str, Any] | Broken]:
    index = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=_BATCH):
            for place in range(batch.num_rows):
                yield _decoded(batch.slice(place, 1), f"{path.name}[{index}]")
                index += 1
    except (OSError, ValueError) as error:
        yield Broken(f"{path.name}[{index}] and what follows", _short(error))


def _decoded(row: Any, where: str) -> Mapping[str, Any] | Broken:
    try:
        return row.to_pylist()[0]
    except ValueError as error:  # text that is not UTF-8
        return Broken(where, _short(error))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _object(line: str, where: str) -> Mapping[str, Any] | Broken:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken(where, f"no JSON: {_short(error)}")
    return row if isinstance(row, dict) else Broken(where, f"want a JSON object, got {type(row).__name__}")


def _json_rows(path: pathlib.Path) -> list:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {_short(error)}") from error
    rows = rows.get("pairs", rows.get("data")) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise InputError(f"{path}: want a list of rows, or an object with a list under pairs or data")
    return [
        row if isinstance(row, dict) else Broken(f"{path.name}[{i}]", "want a JSON object")
        for i, row in enumerate(rows)
    ]
