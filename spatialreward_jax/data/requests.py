"""Edit requests: what the readers of the RL jsonl layout and of plain folders return, and the check of every row."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images

KEPT_TASKS = (
    "background",
    "color_alter",
    "material_alter",
    "motion_change",
    "style",
    "subject_add",
    "subject_remove",
    "subject_replace",
    "tone_transfer",
)
"""The nine tasks of the published RL data on which OmniGen2 is trained (EditScore, `extract_9_tasks.py`)."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FOLDER_INDEX = "instructions.jsonl"


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """One thing to edit.

    Attributes:
        instruction: what the editor is told.
        images: paths of the source images, in the order in which the instruction counts them.
        reward_instruction: what the reward is told (`meta_data.instruction` of the jsonl layout, else `instruction`).
        task_type: kind of edit, "" when the data does not say.
        target_size: (height, width) asked for, or None. With one source image the editor takes that image's size.
        key: 31-bit number made of the instruction and the image paths as written: folds into random keys, so that
            noise depends neither on the batch nor on where the data set lies.
        where: "file:line" that error messages name.
        output: path of the edited image, for supervised training; None where the data does not name one.
    """

    instruction: str
    images: tuple[pathlib.Path, ...]
    reward_instruction: str
    task_type: str = ""
    target_size: tuple[int, int] | None = None
    key: int = 0
    where: str = ""
    output: pathlib.Path | None = None


def read_requests(
    path: str, *, tasks: Sequence[str] = (), check: str = "decode", outputs: bool = False
) -> tuple[EditRequest, ...]:
    """Reads and checks all requests of a `.jsonl` file or of a folder, before anything expensive starts.

    A `.jsonl` file has one object a line: `instruction`, `input_images` (paths relative to the file, or absolute), and
    optionally `task_type`, `meta_data` (a JSON string, or an object, whose `instruction` the reward reads),
    `target_img_size` ([width, height]) and `output_image` (path of the edited image, for supervised training). A folder
    holds either such a file named `instructions.jsonl`, or images each with a text file of the same stem beside it, one
    instruction a line (`cat.jpg`, `cat.txt`).

    Args:
        path: the file or folder.
        tasks: keep only rows of these `task_type`s; empty keeps all. Rows without a task type are always kept.
        check: "decode" decodes every image once; "header" reads only headers (large sets on slow disks).
        outputs: every row must name its `output_image`, which is checked too.

    Raises:
        InputError: one line naming file and line of the first bad row, and how many more are bad.
    """
    if check not in ("decode", "header"):
        raise InputError(f"check={check!r} is unknown; choose decode or header")
    source = pathlib.Path(path)
    if not str(path) or not source.exists():
        raise InputError(f"data {str(path)!r} does not exist; give a .jsonl file or a folder of images")
    if source.is_dir():
        index = source / FOLDER_INDEX
        rows = _jsonl_rows(index) if index.exists() else _folder_rows(source)
    else:
        rows = _jsonl_rows(source)
    problems, seen, requests = [], collections.Counter(), []
    for where, base, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            request = _request(row, base, where)
            if outputs and request.output is None:
                raise InputError(f"{where}: output_image is missing: supervised training needs the edited image")
        except InputError as error:
            problems.append(str(error))
            continue
        seen[request.task_type] += 1
        if not tasks or not request.task_type or request.task_type in tasks:
            requests.append(request)
    if not problems:
        problems = _check_images(requests, check, outputs)
    if problems:
        more = f" ({len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)
    if not requests:
        found = f"; task types there: {', '.join(sorted(seen))}; kept: {', '.join(tasks)}" if seen else ""
        raise InputError(f"{source} holds no edit request{found}")
    return tuple(requests)


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, Any]]:
    """Yields (where, folder of relative paths, row or the InputError that stands for it)."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = InputError(f"{where}: not one JSON object a line: {str(error).splitlines()[0]}")
        yield where, path.parent, row


def _folder_rows(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, Any]]:
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise InputError(f"{folder} holds neither {FOLDER_INDEX} nor images; see `read_requests` for the layouts")
    for picture in pictures:
        sidecar = picture.with_suffix(".txt")
        try:
            lines = sidecar.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"{picture}: no readable {sidecar.name} with its instruction beside it"
            yield str(picture), folder, InputError(f"{message} ({type(error).__name__})")
            continue
        if not any(line.strip() for line in lines):
            yield f"{sidecar}:1", folder, InputError(f"{sidecar}:1: empty instruction")
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{sidecar}:{number}", folder, {"instruction": line, "input_images": [picture.name]}


def _request(row: Any, base: pathlib.Path, where: str) -> EditRequest:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be a JSON object, got {type(row).__name__}")
    instruction = _text(row, "instruction", where)
    names = row.get("input_images")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"{where}: input_images must be a list of at least one path, got {_short(names)}")
    meta = row.get("meta_data")
    if isinstance(meta, str):
        try:
            meta = json.loads(meta)
        except ValueError as error:
            raise InputError(f"{where}: meta_data is no JSON string: {str(error).splitlines()[0]}") from error
    if meta is not None and not isinstance(meta, dict):
        raise InputError(f"{where}: meta_data must hold a JSON object, got {_short(meta)}")
    task_type = row.get("task_type") or ""
    if not isinstance(task_type, str):
        raise InputError(f"{where}: task_type must be text, got {_short(task_type)}")
    text = "\n".join([instruction, *names])
    return EditRequest(
        instruction=instruction,
        images=tuple(base / name for name in names),
        reward_instruction=_text(meta, "instruction", f"{where}: meta_data")
        if meta and "instruction" in meta
        else instruction,
        task_type=task_type,
        target_size=_target_size(row.get("target_img_size"), where),
        key=int.from_bytes(hashlib.blake2s(text.encode()).digest()[:4], "big") >> 1,
        where=where,
        output=base / _text(row, "output_image", where) if row.get("output_image") is not None else None,
    )


def _text(row, name, where):
    value = row.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be text, got {_short(value)}")
    if not value.strip():
        raise InputError(f"{where}: empty {name}")
    return value.strip()


def _target_size(value, where):
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and v >= 16 for v in value):
        raise InputError(f"{where}: target_img_size must be [width, height] of at least 16 pixels, got {_short(value)}")
    return value[1], value[0]


def _short(value):
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_images(requests, check, outputs):
    """Messages of the images that cannot be used; each file is looked at once, in threads."""
    first = {}
    for request in requests:
        for path in (*request.images, *((request.output,) if outputs else ())):
            first.setdefault(path, request.where)

    def problem(path):
        try:
            size = images.image_size(path) if check == "header" else images.read_image(path).shape[:2]
            images.editor_size(*size)
        except InputError as error:
            return f"{first[path]}: {error}" if str(path) in str(error) else f"{first[path]}: {path}: {error}"
        return None

    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        return [message for message in pool.map(problem, first) if message]
