"""Scores a benchmark's edits batch by batch, keeping every answer on disk, so that a kill costs one batch at most.

`answers.jsonl` has one line per edit in the order of the rows, with a mark of what was judged (`records.mark`); each
batch is appended in one write. A restart keeps whole batches and scores the rest; since batches are cut at the same
places, the file ends up the same byte for byte. Lines of images that could not be read are replaced once these can be.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.files import replace
from spatialreward_jax.evaluation.records import Broken, Case, Row, Verdict, mark, verdict_from_json
from spatialreward_jax.io.images import read_image
from spatialreward_jax.reward.types import Edit, Score


class Judge(Protocol):
    """What a benchmark needs of a judge."""

    identity: Any

    def score(self, edits: list[Edit]) -> list[Score]:
        """One score per edit, in order; an answer that cannot be read is an invalid score, not an error."""


@dataclasses.dataclass
class Scan:
    """The rows of a benchmark, gathered while they stream by.

    Attributes:
        cases: rows without images, duplicates left out. digest: of their ids, labels and instructions.
        broken: rows that cannot be used. duplicates: ids of rows that came again. conflicts: keys under which two
            different edits came (the first one counts). marks: of each key's edit.
    """

    cases: list[Case] = dataclasses.field(default_factory=list)
    broken: list[Broken] = dataclasses.field(default_factory=list)
    duplicates: list[str] = dataclasses.field(default_factory=list)
    conflicts: list[str] = dataclasses.field(default_factory=list)
    rows: int = 0
    _hash: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=12))
    _ids: set[str] = dataclasses.field(default_factory=set)
    marks: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Changes with any row's id, labels or instruction, and with their order; not with images: editors compare."""
        return self._hash.hexdigest()

    def edits(self, rows: Iterable[Row | Broken]) -> Iterator[tuple[str, Edit]]:
        """Takes in `rows` and passes on each edit that has not come before, as (key, edit)."""
        seen = set()
        for row in rows:
            self.rows += 1
            if isinstance(row, Broken):
                self.broken.append(row)
                continue
            case = row.case
            if case.id in self._ids:
                self.duplicates.append(case.id)
                continue
            self._ids.add(case.id)
            self.cases.append(case)
            labels = [f"{name}={value}" for name, value in sorted(case.labels.items())]
            self._hash.update(json.dumps([case.id, *labels, row.edits[0].instruction]).encode())
            for key, edit in zip(case.keys, row.edits, strict=True):
                found = mark(edit.instruction, (*edit.sources, edit.edited))
                if self.marks.setdefault(key, found) != found:
                    self.conflicts.append(key)
                elif key not in seen:
                    seen.add(key)
                    yield key, edit


def score_rows(
    rows: Iterable[Row | Broken],
    judge: Judge,
    path: pathlib.Path,
    *,
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Scan, dict[str, Verdict]]:
    """Scores every edit that `path` does not hold yet. -> (the rows, verdicts by key).

    `report` is called with (rows scored, edits scored) before the first batch and after each. The next batch's images
    are read while the judge works. An unreadable image is noted in the file and the run goes on; a later one asks
    for it, if it can be read then. Any other failure of the judge stops the run, with all batches before it kept.
    Raises InputError if `path` holds answers to other rows.
    """
    scan, verdicts = Scan(), {}
    stored = _Answers(path, scan.marks)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        say = report or (lambda rows, edits: None)
        done, pending = 0, None

        def finish(batch: concurrent.futures.Future, rows: int) -> None:
            verdicts.update(stored.append(_score(judge, batch.result())))
            say(rows, len(verdicts))

        for chunk in _chunks(scan.edits(rows), batch_size):
            if (kept := stored.take([key for key, _ in chunk])) is not None:
                verdicts.update(kept | stored.replace(_score(judge, _mended(chunk, kept))))
                done = scan.rows
                continue
            following = reader.submit(_read, chunk), scan.rows
            if pending:
                finish(*pending)
            else:
                say(done, len(verdicts))
            pending = following
        if pending:
            finish(pending[0], scan.rows)
        stored.close(verdicts)
    return scan, verdicts


class _Answers:
    """The file: lines already there are handed out batch by batch while they match, then new ones are appended.

    marks: of the edits, by key, known when they are asked for.
    """

    def __init__(self, path: pathlib.Path, marks: Mapping[str, str]):
        self.path, self._marks = path, marks
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = _complete_lines(path)
        self._taken = self._next = 0  # the batch taken last: lines [_taken, _next)
        self._file = None

    def take(self, keys: Sequence[str]) -> dict[str, Verdict] | None:
        """The stored verdicts of this batch, or None where the file ends (what is left of a torn batch is dropped)."""
        if self._file:
            return None
        lines = self._lines[self._next : self._next + len(keys)]
        records = [json.loads(line) for line in lines]
        if [record["key"] for record in records] != list(keys[: len(records)]):
            raise InputError(f"{self.path} holds answers to other rows than this benchmark's: choose another --out")
        for record in records:
            if "broken" not in record and record.get("edit") != self._marks[record["key"]]:
                raise InputError(
                    f"{self.path}: the images or the instruction of {record['key']} have changed since it was judged: "
                    "choose another --out"
                )
        if len(records) < len(keys):
            self._open()
            return None
        self._taken, self._next = self._next, self._next + len(keys)
        return {record["key"]: verdict_from_json(record) for record in records}

    def replace(self, records: list[dict]) -> dict[str, Verdict]:
        """Puts `records` in place of those with their keys in the batch taken last, and returns their verdicts."""
        if not records:
            return {}
        lines = {record["key"]: self._line(record) for record in records}
        for index in range(self._taken, self._next):
            self._lines[index] = lines.get(json.loads(self._lines[index])["key"], self._lines[index])
        replace(self.path, b"".join(self._lines))
        return {record["key"]: verdict_from_json(record) for record in records}

    def append(self, records: list[dict]) -> dict[str, Verdict]:
        """Writes a batch, through to the disk, and returns its verdicts."""
        self._file.write(b"".join(map(self._line, records)))
        self._file.flush()
        os.fsync(self._file.fileno())
        return {record["key"]: verdict_from_json(record) for record in records}

    def close(self, verdicts: dict[str, Verdict]) -> None:
        if self._file:
            self._file.close()
        elif self._next < len(self._lines):
            raise InputError(
                f"{self.path} holds {len(self._lines)} answers to {len(verdicts)} edits: choose another --out"
            )

    def _line(self, record: dict) -> bytes:
        record = record | {"edit": self._marks[record["key"]]}
        return (json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n").encode()

    def _open(self) -> None:
        self._file = open(self.path, "r+b" if self.path.exists() else "w+b")  # noqa: SIM115 (closed in `close`)
        self._file.truncate(sum(map(len, self._lines[: self._next])))
        self._file.seek(0, os.SEEK_END)


def _complete_lines(path: pathlib.Path) -> list[bytes]:
    """Lines of the file; a last one that a kill cut off is left out. Raises InputError for damage elsewhere."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        try:
            whole = line.endswith(b"\n") and "key" in json.loads(line)
        except ValueError:
            whole = False
        if not whole:
            if number < len(lines) - 1:
                raise InputError(f"{path}:{number + 1} is damaged: delete the lines from there on, and start again")
            return lines[:-1]
    return lines


def _chunks(edits: Iterator[tuple[str, Edit]], size: int) -> Iterator[list[tuple[str, Edit]]]:
    chunk = []
    for edit in edits:
        chunk.append(edit)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read(chunk: list[tuple[str, Edit]]) -> list[tuple[str, Edit | InputError]]:
    """Decodes the images of a batch; an edit whose images cannot be read becomes the error."""
    read = []
    for key, edit in chunk:
        try:
            sources = [read_image(image) for image in edit.sources]
            source = sources if isinstance(edit.source, list | tuple) else sources[0]
            read.append((key, Edit(source, read_image(edit.edited), edit.instruction)))
        except InputError as error:
            read.append((key, error))
    return read


def _mended(chunk: list[tuple[str, Edit]], kept: dict[str, Verdict]) -> list[tuple[str, Edit]]:
    """The edits of a batch that nobody could be asked about, as the file says, and whose images can be read now."""
    again = _read([(key, edit) for key, edit in chunk if not kept[key].readable])
    return [(key, edit) for key, edit in again if isinstance(edit, Edit)]


def _score(judge: Judge, batch: list[tuple[str, Edit | InputError]]) -> list[dict]:
    good = [edit for _, edit in batch if isinstance(edit, Edit)]
    try:
        scores = iter(judge.score(good) if good else ())
    except InputError:
        scores = (_score_one(judge, edit) for edit in good)  # find the one that the judge refuses
    return [{"key": key, **_record(edit if isinstance(edit, InputError) else next(scores))} for key, edit in batch]


def _score_one(judge: Judge, edit: Edit) -> Score | InputError:
    try:
        return judge.score([edit])[0]
    except InputError as error:
        return error


def _record(score: Score | InputError) -> dict:
    if isinstance(score, InputError):
        return {"broken": str(score)}
    record = score.to_json()
    record.pop("identity", None)  # once per file, in the manifest
    return record
