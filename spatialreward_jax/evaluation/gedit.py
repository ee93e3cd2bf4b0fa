"""GEdit-Bench: edit 606 English (or as many Chinese) requests in 11 groups, then let a judge score the results.

Layout (`stepfun-ai/GEdit-Bench` as read by `VectorSpaceLab/EditScore` examples/OmniGen2-RL/evaluation/GEdit-Bench):
parquet; a row has key, task_type, instruction, instruction_language (en or cn), input_image, Intersection_exist.
Results lie in `fullset/{task_type}/{language}/{key}.png`, further samples in `{key}_sample{n}.png`, as the
framework's own script writes them, so that images made elsewhere can be scored here.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import rows as layout
from spatialreward_jax.evaluation.benchmark import Benchmark, Figure, Table
from spatialreward_jax.evaluation.files import read_settings, write_settings
from spatialreward_jax.evaluation.records import Broken, Case, Row, Verdict, check_text
from spatialreward_jax.io.images import read_image, write_png
from spatialreward_jax.reward.types import SCORE_RANGE, Edit

PRESET = "rl-eval"
_METRICS = ("overall", "semantics", "quality")


@dataclasses.dataclass(frozen=True)
class Request:
    """One edit to make. `index` counts the rows of the language from 0, broken ones too: it seeds the sampler."""

    index: int
    key: str
    group: str
    language: str
    instruction: str
    source: bytes | pathlib.Path
    intersection: bool

    def path(self, folder: pathlib.Path, sample: int) -> pathlib.Path:
        """Where the result of sample 0, 1, ... lies below `folder`."""
        name = f"{self.key}_sample{sample}.png" if sample else f"{self.key}.png"
        return folder / "fullset" / self.group / self.language / name


class Editor(Protocol):
    """What generation needs of an editor."""

    def edit(self, source: Any, instruction: str, *, preset: str, seed: int) -> Sequence[Any]:
        """-> images, of which the first is taken: uint8 arrays [H, W, 3] or PIL images."""


def requests(data: str | pathlib.Path, language: str = "en") -> Iterator[Request | Broken]:
    """The requests in one language, "en" or "cn", in the data set's order."""
    if language not in ("en", "cn"):
        raise InputError(f"language {language!r} is unknown: choose en or cn")
    index = -1
    for path in layout.data_files(data):
        for number, row in layout.read_rows(path):
            if not isinstance(row, Broken):
                if row.get("instruction_language", "en") != language:
                    continue
                index += 1
            make = functools.partial(_request, index, language)
            yield layout.attempt(make, row, path, f"{path.name}[{number}]")


def _request(index: int, language: str, row: Mapping[str, Any], path: pathlib.Path) -> Request:
    folder = path.parent
    key, group = str(layout.field(row, "key")), layout.text(row, "task_type")
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in (key, group)):
        raise InputError(f"key {key!r} and task_type {group!r} must be plain file names")
    source = layout.image(layout.field(row, "input_image"), folder)
    instruction = layout.text(row, "instruction")
    check_text(key, group, instruction)
    return Request(index, key, group, language, instruction, source, bool(row.get("Intersection_exist", False)))


def generate(
    data: str | pathlib.Path,
    editor: Editor,
    folder: pathlib.Path,
    *,
    identity: Mapping[str, Any],
    language: str = "en",
    samples: int = 1,
    limit: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[Broken]:
    """Edits every request that has no result yet; settings are pinned in `folder/generation.json`.

    As in the framework: sides floored to multiples of 16 (bicubic) before editing, results resized back (bicubic),
    seed = row index + sample * number of rows. A kill leaves no half image.

    Args:
      data: the data set. editor: edits. folder: of the images. language: of the requests. samples: images of each.
      identity: of the editor.
      limit: the first requests only.
      report: called with (done, total), the first time before any work.

    Returns the requests that could not be edited. Raises InputError if `folder` holds results of other settings.
    """
    from spatialreward_jax.flow.presets import PRESETS  # here: images made before are scored without jax

    usable, digest = [], hashlib.blake2b(digest_size=6)
    for request in requests(data, language):
        usable.append(not isinstance(request, Broken))
        digest.update(_asked(request) if usable[-1] else request.why.encode())
    total, rows = sum(usable[:limit]), len(usable)
    pinned = {"preset": PRESET, "sampling": plain(PRESETS[PRESET]), "language": language, "rows": rows}
    _pin(folder, json.loads(json.dumps(pinned | {"data": digest.hexdigest(), "editor": dict(identity)})))
    broken, done = [], 0
    if report:
        report(done, total)
    for request in itertools.islice(requests(data, language), limit):
        if isinstance(request, Broken):
            broken.append(request)
            continue
        try:
            for sample in range(samples):
                path = request.path(folder, sample)
                if not path.exists():
                    write_png(path, _edit(editor, request, request.index + sample * rows))
        except InputError as error:
            broken.append(Broken(request.key, str(error)))
        done += 1
        if report:
            report(done, total)
    return broken


def _asked(request: Request) -> bytes:
    """What a result depends on: the instruction and the source, a path by its name and size."""
    source = request.source
    shown = source if isinstance(source, bytes) else f"{source.name}:{source.stat().st_size}".encode()
    return f"{request.key}:{request.instruction}:".encode() + shown


def _edit(editor: Editor, request: Request, seed: int) -> np.ndarray:
    source = Image.fromarray(read_image(request.source))
    floored = (source.width // 16 * 16, source.height // 16 * 16)
    if 0 in floored:
        raise InputError(f"the source is {source.width} x {source.height}: each side must be at least 16")
    given = np.asarray(source.resize(floored, Image.Resampling.BICUBIC))
    image = editor.edit(given, request.instruction, preset=PRESET, seed=seed)[0]
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    return np.asarray(image.convert("RGB").resize(source.size, Image.Resampling.BICUBIC))


def _pin(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    path = folder / "generation.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(path, settings)
        return
    was = read_settings(path)
    changed = sorted(k for k in was | settings if was.get(k) != settings.get(k))
    if changed:
        differing = ", ".join(f"{name}: {was.get(name)!r}" for name in changed)
        raise InputError(f"{folder} holds images of other settings ({differing}): choose another --out")


def plain(identity: Any) -> Any:
    """An identity (dataclass, mapping or text) as JSON data."""
    return dataclasses.asdict(identity) if dataclasses.is_dataclass(identity) else identity


def benchmark(folder: str | pathlib.Path, *, language: str = "en", samples: int = 1) -> Benchmark:
    """GEdit-Bench over the results below `folder`; of several samples the best overall one counts, as there."""
    folder = pathlib.Path(folder)

    def rows(data) -> Iterator[Row | Broken]:
        for request in requests(data, language):
            yield request if isinstance(request, Broken) else _row(request, folder, samples)

    return Benchmark(
        name="gedit",
        settings={"language": language, "samples": samples},
        rows=rows,
        alias=lambda key: key.rpartition("/")[0],
        count=lambda data: sum(1 for _ in requests(data, language)),
        values=values,
        right_or_wrong=(),
        figures=tuple(Figure(metric, metric, strata="group") for metric in (*_METRICS, "judge")),
        tables=(
            Table("by group", "group", _METRICS),
            Table("by intersection subset", "intersection", _METRICS, strata="group"),
        ),
    )


def _row(request: Request, folder: pathlib.Path, samples: int) -> Row | Broken:
    paths = [request.path(folder, sample) for sample in range(samples)]
    if absent := [path.name for path in paths if not path.is_file()]:
        return Broken(
            request.key, f"no result {absent[0]} below {folder / 'fullset' / request.group / request.language}"
        )
    ident = f"{request.language}/{request.group}/{request.key}"
    labels = {"group": request.group, "language": request.language, "intersection": str(request.intersection).lower()}
    digests = [
        hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest() for path in paths
    ]  # other images, other keys
    keys = tuple(f"{ident}/{sample}/{digest}" for sample, digest in enumerate(digests))
    return Row(
        Case(ident, keys, labels, ident), tuple(Edit(request.source, path, request.instruction) for path in paths)
    )


def values(case: Case, verdicts: Sequence[Verdict]) -> Mapping[str, float] | None:
    """VIEScore: semantics and quality are each the lower of two sub-scores (0..10), overall = sqrt(their product).

    `judge` is the judge's own overall score of the same sample.
    """
    best = None
    for verdict in verdicts:
        sub = verdict.sub_scores()
        if sub is None:
            return None
        semantics, quality = (max(0.0, min(pair)) / (SCORE_RANGE / 10) for pair in (sub[:2], sub[2:]))
        overall = math.sqrt(semantics * quality)
        if best is None or overall > best["overall"]:
            best = {"overall": overall, "semantics": semantics, "quality": quality, "judge": verdict.overall}
    return best
