"""Files of an evaluation, written whole or not at all. No jax: answers of others are evaluated without it."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from spatialreward_jax.errors import InputError


def replace(path: pathlib.Path, data: bytes | str) -> None:
    """Writes a file (text as UTF-8) in place of what stood there; a kill leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(partial, path)


def write_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes settings as JSON."""
    replace(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """What `write_settings` wrote. Raises InputError for a damaged file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): choose another folder, or remove this one") from error
