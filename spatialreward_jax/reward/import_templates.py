"""Imports the official wording, which published SpatialReward weights were trained on, from a clone of its repository.

    python -m spatialreward_jax.reward.import_templates CLONE OUT

CLONE is a clone of github.com/lorangan-ddup/SpatialReward; OUT receives two template sets, `OUT/server` and
`OUT/bench`, for `--templates=OUT/server`. The files are read as syntax trees (`ast`), never executed. What is written
is exactly what the official programs send: literals that they pass through `str.format` are unescaped, the others are
kept as they stand (so the official PQ wording keeps its doubled braces).
"""

import ast
import pathlib
import string
import sys

from absl import app

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.templates import FIELDS, Templates, save_templates

# set -> (file, {stem: (variable, passed through str.format)})
SOURCES = {
    "server": (
        "example/reward/server/spatial_reward_scorer.py",
        {"sc": ("SC_PROMPT_TEMPLATE", True), "pq": ("PQ_PROMPT_TEMPLATE", True)},
    ),
    "bench": (
        "eval/MMRB2/dataset.py",
        {
            "sc": ("SC_PROMPT_SINGLE_IMAGE", True),
            "sc_multi": ("SC_PROMPT_MULTI_IMAGE", True),
            "pq": ("PQ_PROMPT", False),
        },
    ),
}

_MARK = "\0{}\0"  # stands for a field while the braces around it are still ambiguous


def import_templates(clone: str | pathlib.Path, out: str | pathlib.Path) -> list[Templates]:
    """Writes `out/server` and `out/bench` -> the sets. Raises InputError when the clone does not hold the wording."""
    clone, found = pathlib.Path(clone), []
    if not clone.is_dir():
        raise InputError(f"{clone} is no folder: give a clone of github.com/lorangan-ddup/SpatialReward")
    for name, (file, variables) in SOURCES.items():
        literals = _string_literals(clone / file)
        missing = [variable for variable, _ in variables.values() if variable not in literals]
        if missing:
            raise InputError(f"{clone / file} assigns no string to {', '.join(missing)}")
        texts = {stem: _sent(literals[var], formatted, var) for stem, (var, formatted) in variables.items()}
        found.append(Templates(name, **texts))
    for templates in found:
        save_templates(templates, pathlib.Path(out) / templates.name)
    return found


def _string_literals(path: pathlib.Path) -> dict[str, str]:
    """Module-level `NAME = "literal"` assignments of a Python file."""
    if not path.is_file():
        raise InputError(f"{path} is missing: give a clone of github.com/lorangan-ddup/SpatialReward")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as why:
        raise InputError(f"{path} cannot be read as Python: {why}") from why
    literals = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            literals |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return literals


def _sent(literal: str, formatted: bool, variable: str) -> str:
    """The text that the official program sends, with only our fields left to fill in."""
    text = literal
    if formatted:
        try:
            pieces = list(string.Formatter().parse(literal))
        except ValueError as why:
            raise InputError(f"{variable} is no format string: {why}") from why
        unknown = {field for _, field, _, _ in pieces if field is not None} - set(FIELDS)
        if unknown:
            raise InputError(f"{variable} asks for {', '.join(sorted(unknown))}; known are {', '.join(FIELDS)}")
        text = "".join(plain + (_MARK.format(field) if field else "") for plain, field, _, _ in pieces)
    if any(f"{{{name}}}" in text for name in FIELDS):
        raise InputError(f"{variable} holds a field's name in plain braces, which cannot be told from the field")
    for name in FIELDS:
        text = text.replace(_MARK.format(name), f"{{{name}}}")
    return text


def main(argv: list[str]) -> None:
    """Command line: CLONE OUT."""
    if len(argv) != 3:
        print("usage: python -m spatialreward_jax.reward.import_templates CLONE OUT", file=sys.stderr)
        sys.exit(2)
    try:
        for templates in import_templates(argv[1], argv[2]):
            print(f"{pathlib.Path(argv[2]) / templates.name}: {templates.id}")
    except InputError as why:
        print(f"error: {why}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
