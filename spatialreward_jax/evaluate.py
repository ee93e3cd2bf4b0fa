"""Evaluates a judge, or an editor, on a benchmark that lies on disk.

    python -m spatialreward_jax.evaluate --bench=mer --data=MER-Bench --model=JUDGE --out=results/mer
    python -m spatialreward_jax.evaluate --bench=mmrb2 --data=MMRB2 --answers=other.jsonl --out=results/other
    python -m spatialreward_jax.evaluate --bench=gedit --data=GEdit-Bench --editor=EDITOR --model=JUDGE --out=DIR
    python -m spatialreward_jax.evaluate --bench=mer --compare=results/a,results/b --allow_different_identity

Writes answers.jsonl (one line per scored edit), results.json, report.md and what a run goes on from into --out. Started
again with the same flags it goes on where it was stopped and ends with the same files.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable

from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import (
    BENCHMARKS,
    compare,
    comparison_table,
    evaluate,
    evaluate_answers,
    gedit,
    read_answers,
    read_results,
)
from spatialreward_jax.evaluation.benchmark import Benchmark
from spatialreward_jax.evaluation.files import read_settings
from spatialreward_jax.evaluation.results import report
from spatialreward_jax.evaluation.runner import Judge
from spatialreward_jax.evaluation.vie_judge import VIEJudge
from spatialreward_jax.io.int8 import FORMATS
from spatialreward_jax.reward.aggregate import KINDS, Aggregation
from spatialreward_jax.reward.parsing import MODES
from spatialreward_jax.reward.types import SCORE_MODES

_BENCH = flags.DEFINE_enum("bench", None, [*BENCHMARKS, "gedit"], "Benchmark.")
_DATA = flags.DEFINE_string("data", "", "Folder or file of the benchmark, as downloaded (parquet, jsonl or json).")
_OUT = flags.DEFINE_string("out", "", "Folder for the results, and what a stopped evaluation goes on from.")
_MODEL = flags.DEFINE_string("model", "", "The judge: a folder in Hugging Face layout, or embedded.")
_ADAPTER = flags.DEFINE_string("adapter", "", "PEFT folder to put on the judge.")
_QUANTIZE = flags.DEFINE_enum("quantize", None, FORMATS, "Weights of the judge's linear layers in fewer bits.")
_TEMPLATES = flags.DEFINE_string("templates", "", "Wording of the questions: a shipped set or an imported folder.")
_TOKENS = flags.DEFINE_integer("max_new_tokens", 0, "Longest answer of the judge; 0: what the judge's folder says.")
_CONSTRAINED = flags.DEFINE_bool("constrained", False, "Let the judge write readable answers only, by a grammar.")
_SCORE_MODE = flags.DEFINE_enum(
    "score_mode", "answered", SCORE_MODES, "Scores as written, or as means (needs --constrained)."
)
_ANSWERS = flags.DEFINE_string(
    "answers", "", "Answers of any judge (jsonl, see evaluation/answers.py); needs no model."
)
_VIE_URL = flags.DEFINE_string("vie_url", "", "OpenAI-compatible endpoint to ask as a VIEScore judge (.../v1).")
_VIE_MODEL = flags.DEFINE_string(
    "vie_model", "", "Name of the model at --vie_url; its key is read from OPENAI_API_KEY."
)
_PARSING = flags.DEFINE_enum("parsing", "strict", MODES, "How the judge's texts are read.")
_AGGREGATION = flags.DEFINE_enum("aggregation", "weighted", KINDS, "How sub-scores become one score.")
_PIXELS = flags.DEFINE_string("pixel_policy", "eval", "How large images reach the judge: eval, server, sft or rl.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Edits given to the judge at a time.", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "Evaluate the first rows only.", lower_bound=1)
_SEARCH = flags.DEFINE_bool("grid_search", False, "Also search the aggregation weights (JSON and heat map).")
_RESAMPLES = flags.DEFINE_integer("resamples", 2000, "Bootstrap resamples.", lower_bound=100)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.")
_COMPARE = flags.DEFINE_list("compare", [], "Two result files or folders to test against each other.")
_ALLOW = flags.DEFINE_bool("allow_different_identity", False, "Compare results of judges that differ.")
_EDITOR = flags.DEFINE_string("editor", "", "gedit: the editor that makes the images (OmniGen2 layout, or embedded).")
_EDITOR_ADAPTER = flags.DEFINE_string("editor_adapter", "", "gedit: LoRA adapter to put on the editor.")
_IMAGES = flags.DEFINE_string("images", "", "gedit: folder with images made before (fullset/GROUP/LANGUAGE/KEY.png).")
_LANGUAGE = flags.DEFINE_enum("language", "en", ["en", "cn"], "gedit: language of the instructions.")
_MESH = flags.DEFINE_string(
    "mesh", "", "Axes data,fsdp,tensor over all devices, see README; by default the first device."
)
_SAMPLES = flags.DEFINE_integer("num_samples", 1, "gedit: images per request, of which the best counts.", lower_bound=1)


def main(_argv) -> None:
    """Compares two results, or evaluates and prints the report."""
    if _BENCH.value is None:
        raise InputError(f"--bench is needed: one of {', '.join([*BENCHMARKS, 'gedit'])}")
    if _COMPARE.value:
        _compare()
        return
    if not _DATA.value or not _OUT.value:
        raise InputError("--data and --out are needed: the benchmark on disk, and a folder for the results")
    given = [name for name, value in (("model", _MODEL), ("answers", _ANSWERS), ("vie_url", _VIE_URL)) if value.value]
    if len(given) != 1:
        raise InputError(f"give one of --model, --answers and --vie_url, got {', '.join(given) or 'none'}")
    if not _MODEL.value and (_CONSTRAINED.value or _SCORE_MODE.value != "answered"):
        raise InputError("--constrained and --score_mode need --model: no other judge's answers are written here")
    _check_flags(given[0])
    benchmark, notes = _gedit() if _BENCH.value == "gedit" else (BENCHMARKS[_BENCH.value], {})
    options = {
        "notes": notes,
        "limit": _LIMIT.value,
        "search": _SEARCH.value,
        "resampling": (_RESAMPLES.value, _SEED.value),
    }
    aggregation = Aggregation(_AGGREGATION.value, clamp=_PARSING.value != "bench")
    if _ANSWERS.value:
        asked = aggregation if _AGGREGATION.present else None  # else numbers stay as they are given
        answers = read_answers(_ANSWERS.value, parsing=_PARSING.value, aggregation=asked)
        file = pathlib.Path(_ANSWERS.value)
        identity = {
            "model": f"answers:{file.stem}",
            "revision": hashlib.sha256(file.read_bytes()).hexdigest()[:12],
            "parsing": _PARSING.value,
            "aggregation": asked.name if asked else "as given",
        }
        results = evaluate_answers(benchmark, _DATA.value, _OUT.value, answers, identity=identity, **options)
    else:
        judge = _judge(aggregation)
        try:
            results = evaluate(
                benchmark, _DATA.value, _OUT.value, judge, batch_size=_BATCH.value, report=_progress("edits"), **options
            )
        except ConnectionError as error:
            raise InputError(str(error)) from error
        if _MODEL.value:
            print(f"the judge's programs compiled: {len(judge.answerer.engine.shapes)}")
    print(report(results))
    print(f"results: {pathlib.Path(_OUT.value) / 'results.json'}")


_OF_THE_MODEL = ("adapter", "quantize", "templates", "max_new_tokens", "pixel_policy")
_OF_OUR_WORDING = ("parsing", "aggregation")


def _check_flags(judge: str) -> None:
    """Raises InputError for a flag that this kind of judge would ignore."""
    nets = () if _EDITOR.value else ("mesh",)
    without = {
        "model": (),
        "answers": _OF_THE_MODEL + nets,
        "vie_url": _OF_THE_MODEL + _OF_OUR_WORDING + nets,
    }[judge]
    if ignored := [name for name in without if flags.FLAGS[name].present]:
        raise InputError(f"--{ignored[0]} has no effect on a judge given by --{judge}: leave it out")


def _judge(aggregation: Aggregation) -> Judge:
    if _VIE_URL.value:
        if not _VIE_MODEL.value:
            raise InputError("--vie_url needs --vie_model, the name of the model there")
        return VIEJudge(_VIE_URL.value, _VIE_MODEL.value)
    from spatialreward_jax.memory import keep_freed_memory  # here: answers are evaluated without loading any net
    from spatialreward_jax.mesh import mesh_of
    from spatialreward_jax.reward.judge import RewardModel
    from spatialreward_jax.reward.vlm import Decoding

    keep_freed_memory()
    return RewardModel.from_pretrained(
        _MODEL.value,
        adapter=_ADAPTER.value or None,
        mesh=mesh_of(_MESH.value),
        pixel_policy=_PIXELS.value,
        templates=_TEMPLATES.value or None,
        parsing=_PARSING.value,
        aggregation=aggregation,
        decoding=Decoding(max_new_tokens=_TOKENS.value) if _TOKENS.value else None,
        quantize=_QUANTIZE.value,
        constrained=_CONSTRAINED.value,
        score_mode=_SCORE_MODE.value,
    )


def _gedit() -> tuple[Benchmark, dict]:
    """Makes the images that are not there yet. -> (the benchmark over them, what is known of their making)."""
    if bool(_EDITOR.value) == bool(_IMAGES.value):
        raise InputError("--bench=gedit needs either --editor, to make the images, or --images, where they lie")
    folder = pathlib.Path(_IMAGES.value or pathlib.Path(_OUT.value) / "images")
    if _EDITOR.value:
        from spatialreward_jax.editor import Editor
        from spatialreward_jax.io.pretrained import resolve
        from spatialreward_jax.mesh import mesh_of
        from spatialreward_jax.reward.loading import fingerprint

        folders = [
            resolve(_EDITOR.value, "editor"),
            *([pathlib.Path(_EDITOR_ADAPTER.value)] if _EDITOR_ADAPTER.value else []),
        ]
        weights = [fingerprint(sorted(folder.rglob("*.safetensors"))) for folder in folders]
        editor = Editor.from_pretrained(_EDITOR.value, adapter=_EDITOR_ADAPTER.value or None, mesh=mesh_of(_MESH.value))
        say = _progress("images")
        gedit.generate(
            _DATA.value,
            editor,
            folder,
            identity={"path": _EDITOR.value, "adapter": _EDITOR_ADAPTER.value, "weights": weights},
            language=_LANGUAGE.value,
            samples=_SAMPLES.value,
            limit=_LIMIT.value,
            report=lambda done, total: say(done, total, done),
        )
    made = folder / "generation.json"
    notes = {"images": read_settings(made) if made.is_file() else str(folder), "samples": _SAMPLES.value}
    return gedit.benchmark(folder, language=_LANGUAGE.value, samples=_SAMPLES.value), notes


def _compare() -> None:
    if len(_COMPARE.value) != 2:
        raise InputError(f"--compare wants two result files, got {len(_COMPARE.value)}")
    a, b = map(read_results, _COMPARE.value)
    bench = gedit.benchmark("") if _BENCH.value == "gedit" else BENCHMARKS[_BENCH.value]
    result = compare(a, b, bench, allow_different_identity=_ALLOW.value, resamples=_RESAMPLES.value, seed=_SEED.value)
    print(comparison_table(result))
    if _OUT.value:
        folder = pathlib.Path(_OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.json").write_text(json.dumps(result, indent=1) + "\n")


def _progress(noun: str) -> Callable[[int, int, int], None]:
    """-> say(rows done, rows in all, things done); the first call, before any work, starts the clock."""
    from spatialreward_jax.reporting.progress import Progress

    bar = None

    def say(done: int, total: int, things: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Progress(total, start=done)
        else:
            bar.step(done, {noun: things})

    return say


if __name__ == "__main__":
    cli.run(main)
