"""The wording of the judge's questions, as data.

A template set is a folder with `sc.txt` and `pq.txt` and, where several sources have their own wording,
`sc_multi.txt`. A file holds exactly what is sent; `{instruction}`, `{score_range}` and `{num_input_images}` are filled
in and every other brace stands for itself. Shipped sets: `default`, and `compact` for small judges that were trained
on it: it leaves out how to answer. The official wording is imported from a clone by
`spatialreward_jax.reward.import_templates`.
"""

import dataclasses
import hashlib
import os
import pathlib
import re

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.types import SCORE_RANGE

FIELDS = ("instruction", "score_range", "num_input_images")
SHIPPED = pathlib.Path(__file__).parent / "wording"

_FIELD = re.compile("{(" + "|".join(FIELDS) + ")}")


@dataclasses.dataclass(frozen=True)
class Templates:
    """A template set. `sc_multi` is the SC wording for several sources ("" where `sc` serves for those too)."""

    name: str
    sc: str
    pq: str
    sc_multi: str = ""

    @property
    def id(self) -> str:
        """Name and content hash, as recorded with every score, e.g. `default@1f0c2d3e4a5b`."""
        content = "\0".join((self.sc, self.pq, self.sc_multi)).encode()
        return f"{self.name}@{hashlib.sha256(content).hexdigest()[:12]}"

    def sc_text(self, instruction: str, num_input_images: int) -> str:
        """The SC question for an edit of `num_input_images` sources."""
        wording = self.sc_multi if self.sc_multi and num_input_images > 1 else self.sc
        return _fill(wording, instruction=instruction, num_input_images=num_input_images)

    def pq_text(self) -> str:
        """The PQ question."""
        return _fill(self.pq)


def load_templates(name: str | os.PathLike) -> Templates:
    """A shipped set by its name, or any set by its folder. Raises InputError."""
    folder = SHIPPED / name if (SHIPPED / name / "sc.txt").is_file() else pathlib.Path(name)
    if not folder.is_dir():
        shipped = ", ".join(sorted(path.name for path in SHIPPED.iterdir()))
        raise InputError(f"template set {str(name)!r} is neither shipped ({shipped}) nor a folder")
    files = {stem: folder / f"{stem}.txt" for stem in ("sc", "pq", "sc_multi")}
    missing = [f"{stem}.txt" for stem in ("sc", "pq") if not files[stem].is_file()]
    if missing:
        sets = sorted(file.parent.name for file in folder.glob("*/sc.txt"))
        hint = f": give one of its sets, {' or '.join(str(folder / name) for name in sets)}" if sets else ""
        raise InputError(f"template folder {folder} lacks {' and '.join(missing)}{hint}")
    texts = {stem: path.read_bytes().decode() for stem, path in files.items() if path.is_file()}
    if "{instruction}" not in texts["sc"]:
        raise InputError(f"{files['sc']} never says {{instruction}}: the judge would not know what was asked for")
    return Templates(folder.name, **texts)


def save_templates(templates: Templates, folder: str | os.PathLike) -> None:
    """Writes a set so that `load_templates` reads it back character for character (its name is the folder's)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("sc", "pq", "sc_multi"):
        if text := getattr(templates, stem):
            (folder / f"{stem}.txt").write_bytes(text.encode())


def _fill(wording: str, **values: object) -> str:
    values["score_range"] = SCORE_RANGE
    return _FIELD.sub(lambda match: str(values.get(match.group(1), match.group(0))), wording)
