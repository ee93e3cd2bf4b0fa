"""Edits an image by instruction.

    python -m spatialreward_jax.edit --model=embedded --source=cat.png --instruction="make the sky red" --out=edit.png
    python -m spatialreward_jax.edit --model=DIR --source=cat.png --instruction=T --out=best.png --num_samples=16 \
        --best_of --judge=JUDGE --constrained --score_mode=expected

Prints one JSON object: `images` (the files), `seed`, and with --best_of `scores` (see the `score` program) and `best`.
"""

import json
import pathlib
import sys

from absl import flags

from spatialreward_jax import cli, judge_flags
from spatialreward_jax.editor import Editor
from spatialreward_jax.editor.prompts import edit_turns
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import PRESETS, sampler_preset
from spatialreward_jax.io.images import read_image, write_png
from spatialreward_jax.mesh import mesh_of
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.types import Edit


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("model", "embedded", "Editor: folder in the OmniGen2 layout, or embedded.")
    flags.DEFINE_string("adapter", "", "LoRA adapter of the editor: PEFT folder or diffusers file.")
    flags.DEFINE_float("alpha", None, "Alpha of an adapter whose file does not carry it.")
    flags.DEFINE_multi_string("source", [], "Image to edit; may be given up to 5 times.")
    flags.DEFINE_string("instruction", "", "What to change.")
    flags.DEFINE_string("out", "", "PNG to write; with several samples their number goes before the suffix.")
    flags.DEFINE_string("size", "", "HEIGHTxWIDTH of the result, needed with several sources.")
    flags.DEFINE_integer("num_samples", 1, "Edits to make.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Sample i depends on (seed, i) alone.")
    flags.DEFINE_enum("preset", "omnigen2", sorted(PRESETS), "Sampler settings.")
    flags.DEFINE_boolean("best_of", False, "Score the samples and keep the best one.")
    flags.DEFINE_string("judge", "embedded", "Judge for --best_of: folder in the Qwen3-VL layout, or embedded.")
    judge_flags.define_writing()
    judge_flags.define_mesh()
    flags.adopt_module_key_flags(judge_flags)


def main(_argv: list[str]) -> int:
    """Flags -> images -> files."""
    given = flags.FLAGS
    if not given.source or not given.out:
        raise InputError("--source=IMAGE and --out=PNG are needed")
    edit_turns([given.instruction])
    if not given.best_of and (idle := [name for name in ("judge", *judge_flags.WRITING) if given[name].present]):
        raise InputError(f"--{idle[0]} has no effect without --best_of: leave it out")
    preset = sampler_preset(given.preset)
    sources = [read_image(path) for path in given.source]
    size = parse_size(given.size)
    judge, mesh = None, mesh_of(given.mesh)
    if given.best_of:
        judge = RewardModel.from_pretrained(given.judge, mesh=mesh, **judge_flags.writing(given))
    editor = Editor.from_pretrained(given.model, adapter=given.adapter or None, alpha=given.alpha, mesh=mesh)
    source = sources[0] if len(sources) == 1 else sources
    images = editor.edit(
        source, given.instruction, num_samples=given.num_samples, seed=given.seed, preset=preset, size=size
    )
    report = {}
    if judge:
        scores = judge.score([Edit(source, image, given.instruction) for image in images])
        valid = [i for i, score in enumerate(scores) if score.valid]
        report = {"scores": [score.to_json() for score in scores], "best": None}
        if valid:
            report["best"] = max(valid, key=lambda i: scores[i].overall)
            images = [images[report["best"]]]
        else:
            print("warning: the judge gave no readable score, all samples are kept", file=sys.stderr)
    files = output_files(given.out, len(images))
    for file, image in zip(files, images):
        write_png(file, image)
    print(json.dumps({"images": files, "seed": given.seed, **report}, indent=2))
    return 0


def parse_size(text: str) -> tuple[int, int] | None:
    """ "480x640" -> (480, 640); "" -> None. Raises InputError."""
    if not text:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise InputError(f"--size={text}: write HEIGHTxWIDTH in pixels, e.g. 512x512")
    return int(sides[0]), int(sides[1])


def output_files(out: str, count: int) -> list[str]:
    """`edit.png`, or `edit_0.png`, `edit_1.png`, ... for several images."""
    path = pathlib.Path(out)
    if count == 1:
        return [str(path)]
    return [str(path.with_name(f"{path.stem}_{number}{path.suffix}")) for number in range(count)]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
