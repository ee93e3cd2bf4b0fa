"""Rows for supervised training of a judge: chats with images and answers, and the jsonl files that hold them.

The layout is that of ms-swift, one object a line:

    {"messages": [{"role": "system", "content": "..."},                                optional
                  {"role": "user", "content": "<image><image>Before, after. Task: ..."},
                  {"role": "assistant", "content": "{\\"edit_region\\": ...}"}, ...],      more turns may follow
     "images": ["before.png", "after.png"]}

`<image>` in the text stands where an image is shown, images in order; where the texts hold none, all images come first
in the first user turn. Paths are relative to the file, or absolute.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import image_size, read_image
from spatialreward_jax.reward.chats import ChatRow, Turn

IMAGE = "<image>"
ROLES = ("system", "user", "assistant")


def question_row(images: Sequence[np.ndarray], question: str, answer: str) -> ChatRow:
    """One question as the judge asks it (images first, text last) and its answer."""
    ask = Turn("user", (*[None] * len(images), question))
    return ChatRow((ask, Turn("assistant", (answer,))), tuple(images))


@dataclasses.dataclass(frozen=True)
class FileRow:
    """A row of a jsonl file before its images are read."""

    turns: tuple[Turn, ...]
    paths: tuple[pathlib.Path, ...]
    where: str

    def read(self) -> ChatRow:
        """Reads the images. Raises InputError naming the row."""
        try:
            return ChatRow(self.turns, tuple(read_image(path) for path in self.paths))
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error


class ChatFile:
    """The rows of a jsonl file. A batch holds rows with the same `measure`.

    Args:
        path: the file.
        measure: (turns, image sizes as (height, width)) -> the row's bucket; raises InputError where it does not fit.

    Raises:
        InputError: one line naming file and line of the first bad row, and how many more are bad.
    """

    def __init__(self, path: str, measure: Callable[[tuple[Turn, ...], list[tuple[int, int]]], Any]):
        self.rows, self.keys = [], []
        problems = []
        for row in _read_lines(pathlib.Path(path)):
            try:
                if isinstance(row, InputError):
                    raise row
                sizes = [image_size(image) for image in row.paths]
                self.keys.append(measure(row.turns, sizes))
                self.rows.append(row)
            except InputError as error:
                where = "" if isinstance(row, InputError) or row.where in str(error) else f"{row.where}: "
                problems.append(f"{where}{error}")
        if problems:
            more = f" ({len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
            raise InputError(problems[0] + more)
        if not self.rows:
            raise InputError(f"{path} holds no chat")

    def __getitem__(self, index: int) -> ChatRow:
        return self.rows[index].read()


def _read_lines(path: pathlib.Path):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # no `splitlines`: JSON may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read data {str(path)!r}: {error}; give a .jsonl file of chats, or 'editworld'"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield _file_row(json.loads(line), path.parent, where)
        except InputError as error:
            yield error
        except ValueError as error:
            yield InputError(f"{where}: not one JSON object a line: {str(error).splitlines()[0]}")


def _file_row(row: Any, base: pathlib.Path, where: str) -> FileRow:
    messages = row.get("messages") if isinstance(row, dict) else None
    images = row.get("images") or [] if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: a row needs `messages`, a list of turns with role and content")
    if not isinstance(images, list) or not all(isinstance(name, str) and name for name in images):
        raise InputError(f"{where}: `images` must be a list of paths")
    turns = tuple(_turn(message, where) for message in messages)
    roles = [turn.role for turn in turns if turn.role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles or "system" in [t.role for t in turns[1:]]:
        raise InputError(f"{where}: turns must be user, assistant, ... (one system turn before them), got {roles}")
    shown = sum(part is None for turn in turns for part in turn.parts)
    if not shown and images:
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        opened = dataclasses.replace(turns[first], parts=(*[None] * len(images), *turns[first].parts))
        turns, shown = (*turns[:first], opened, *turns[first + 1 :]), len(images)
    if shown != len(images):
        raise InputError(f"{where}: {shown} times {IMAGE} for {len(images)} images")
    return FileRow(turns, tuple(base / name for name in images), where)


def _turn(message: Any, where: str) -> Turn:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if role not in ROLES or not isinstance(content, str):
        raise InputError(f"{where}: a turn needs a role of {', '.join(ROLES)} and a content that is text")
    parts: list[str | None] = []
    for number, text in enumerate(content.split(IMAGE) if role == "user" else [content]):
        parts += ([None] if number else []) + ([text] if text else [])
    if role == "assistant" and not content.strip():
        raise InputError(f"{where}: an empty answer")
    return Turn(role, tuple(parts))
