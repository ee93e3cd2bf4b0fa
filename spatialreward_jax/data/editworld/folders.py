"""Folders that appear whole or not at all, and know what they hold."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable

from spatialreward_jax.errors import InputError

VERSION = 1  # raise it when the same seed gives other scenes, words or pixels
_STAMP = "editworld.stamp"


def make_folder(folder: str | os.PathLike, wanted: dict, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Fills a new folder by `fill(part)`, unless it holds the very same already. -> the folder.

    wanted: what it is to hold, plain JSON; written beside the data. Safe against other processes that do the same.
    Raises InputError when the folder holds anything else or cannot be written.
    """
    folder = pathlib.Path(folder)
    stamp = {"version": VERSION, **wanted}
    if _already_there(folder, stamp):
        return folder
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        fill(part)
        (part / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        # Another process may have finished the same folder meanwhile.
        if not _already_there(folder, stamp):
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _already_there(folder: pathlib.Path, stamp: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != stamp:
        raise InputError(f"{folder} holds something other than the EditWorld set {stamp}: give an empty folder")
    return True
