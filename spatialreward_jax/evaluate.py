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

from spatialreward_jax import cli, judge_flags
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
from spatialreward_jax.evaluation.run import check_search
from spatialreward_jax.evaluation.runner import Judge
from spatialreward_jax.evaluation.vie_judge import VIEJudge
from spatialreward_jax.reward.aggregate import Aggregation


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    flags.DEFINE_enum("bench", None, [*BENCHMARKS, "gedit"], "Benchmark.")
    flags.DEFINE_string("data", "", "Folder or file of the benchmark, as downloaded (parquet, jsonl or json).")
    flags.DEFINE_string("out", "", "Folder for the results, and what a stopped evaluation goes on from.")
    flags.DEFINE_string("answers", "", "Answers of any judge (jsonl, see evaluation/answers.py); needs no model.")
    flags.DEFINE_string("vie_url", "", "OpenAI-compatible endpoint to ask as a VIEScore judge (.../v1).")
    flags.DEFINE_string("vie_model", "", "Name of the model at --vie_url; its key is read from OPENAI_API_KEY.")
    flags.DEFINE_integer("limit", None, "Evaluate the first rows only.", lower_bound=1)
    flags.DEFINE_bool("grid_search", False, "Also search the aggregation weights (JSON and heat map).")
    flags.DEFINE_integer("resamples", 2000, "Bootstrap resamples.", lower_bound=100)
    flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.")
    flags.DEFINE_list("compare", [], "Two result files or folders to test against each other.")
    flags.DEFINE_bool("allow_different_identity", False, "Compare results of judges that differ.")
    flags.DEFINE_string("editor", "", "gedit: the editor that makes the images (OmniGen2 layout, or embedded).")
    flags.DEFINE_string("editor_adapter", "", "gedit: LoRA adapter to put on the editor.")
    flags.DEFINE_float("editor_alpha", None, "gedit: alpha of an adapter whose file does not carry it.")
    flags.DEFINE_string("images", "", "gedit: folder with images made before (fullset/GROUP/LANGUAGE/KEY.png).")
    flags.DEFINE_enum("language", "en", ["en", "cn"], "gedit: language of the instructions.")
    flags.DEFINE_integer("num_samples", 1, "gedit: images per request, of which the best counts.", lower_bound=1)
    judge_flags.define(model="")
    flags.adopt_module_key_flags(judge_flags)


def main(_argv) -> None:
    """Compares two results, or evaluates and prints the report."""
    given = flags.FLAGS
    if given.bench is None:
        raise InputError(f"--bench is needed: one of {', '.join([*BENCHMARKS, 'gedit'])}")
    if given.compare:
        _compare(given)
        return
    if not given.data or not given.out:
        raise InputError("--data and --out are needed: the benchmark on disk, and a folder for the results")
    judges = [name for name in ("model", "answers", "vie_url") if given[name].value]
    if len(judges) != 1:
        raise InputError(f"give one of --model, --answers and --vie_url, got {', '.join(judges) or 'none'}")
    if not given.model and (given.constrained or given.score_mode != "answered"):
        raise InputError("--constrained and --score_mode need --model: no other judge's answers are written here")
    _check_flags(given, judges[0])
    benchmark, notes = _gedit(given) if given.bench == "gedit" else (BENCHMARKS[given.bench], {})
    options = {
        "notes": notes,
        "limit": given.limit,
        "search": given.grid_search,
        "resampling": (given.resamples, given.seed),
    }
    if given.answers:
        asked = None  # numbers stay as they are given
        if given["aggregation"].present:
            asked = Aggregation(given.aggregation, clamp=given.parsing != "bench")
        answers = read_answers(given.answers, parsing=given.parsing, aggregation=asked)
        file = pathlib.Path(given.answers)
        identity = {
            "model": f"answers:{file.stem}",
            "revision": hashlib.sha256(file.read_bytes()).hexdigest()[:12],
            "parsing": given.parsing,
            "aggregation": asked.name if asked else "as given",
        }
        results = evaluate_answers(benchmark, given.data, given.out, answers, identity=identity, **options)
    else:
        judge = _judge(given)
        try:
            results = evaluate(
                benchmark,
                given.data,
                given.out,
                judge,
                batch_size=given.batch_size,
                report=_progress("edits"),
                **options,
            )
        except ConnectionError as error:
            raise InputError(str(error)) from error
        if given.model:
            print(f"the judge's programs compiled: {len(judge.answerer.engine.shapes)}")
    print(report(results))
    print(f"results: {pathlib.Path(given.out) / 'results.json'}")


_OF_THE_MODEL = ("adapter", "quantize", "templates", "max_new_tokens", "pixel_policy", "temperature", "ensemble")
_OF_OUR_WORDING = ("parsing", "aggregation")
_OF_AN_EDITOR = ("editor_adapter", "editor_alpha")
_OF_GEDIT = ("editor", "images", "language", "num_samples", *_OF_AN_EDITOR)


def _check_flags(given: flags.FlagValues, judge: str) -> None:
    """Raises InputError for a flag that would be ignored, and for what can be refused before images are made."""
    if given.bench != "gedit" and (ignored := [name for name in _OF_GEDIT if given[name].present]):
        raise InputError(f"--{ignored[0]} is for --bench=gedit alone: leave it out")
    if given.bench == "gedit" and bool(given.editor) == bool(given.images):
        raise InputError("--bench=gedit needs either --editor, to make the images, or --images, where they lie")
    if not given.editor and (ignored := [name for name in _OF_AN_EDITOR if given[name].present]):
        raise InputError(f"--{ignored[0]} needs --editor: leave it out")
    check_search(gedit.benchmark("") if given.bench == "gedit" else BENCHMARKS[given.bench], given.grid_search)
    if bool(given.vie_url) != bool(given.vie_model):
        raise InputError("--vie_url and --vie_model, the name of the model there, go together")
    if given.model:
        from spatialreward_jax.io.pretrained import resolve  # here: answers are evaluated without loading any net

        resolve(given.model, "judge")
    nets = () if given.editor else ("mesh",)
    without = {
        "model": (),
        "answers": _OF_THE_MODEL + nets,
        "vie_url": _OF_THE_MODEL + _OF_OUR_WORDING + nets,
    }[judge]
    if ignored := [name for name in without if given[name].present]:
        raise InputError(f"--{ignored[0]} has no effect on a judge given by --{judge}: leave it out")


def _judge(given: flags.FlagValues) -> Judge:
    if given.vie_url:
        return VIEJudge(given.vie_url, given.vie_model)
    from spatialreward_jax.memory import keep_freed_memory

    keep_freed_memory()
    return judge_flags.load(given)


def _gedit(given: flags.FlagValues) -> tuple[Benchmark, dict]:
    """Makes the images that are not there yet. -> (the benchmark over them, what is known of their making)."""
    folder = pathlib.Path(given.images or pathlib.Path(given.out) / "images")
    if given.editor:
        from spatialreward_jax.editor import Editor
        from spatialreward_jax.io.pretrained import resolve
        from spatialreward_jax.mesh import mesh_of
        from spatialreward_jax.reward.loading import adapter_files, fingerprint

        adapter, alpha = given.editor_adapter or None, given.editor_alpha
        editor = Editor.from_pretrained(given.editor, adapter=adapter, alpha=alpha, mesh=mesh_of(given.mesh))
        parts = [sorted(resolve(given.editor, "editor").rglob("*.safetensors")), adapter_files(adapter)]
        identity = {"path": given.editor, "adapter": given.editor_adapter, "weights": [*map(fingerprint, parts)]}
        identity |= {} if alpha is None else {"alpha": alpha}
        say = _progress("images")
        gedit.generate(
            given.data,
            editor,
            folder,
            identity=identity,
            language=given.language,
            samples=given.num_samples,
            limit=given.limit,
            report=lambda done, total: say(done, total, done),
        )
    made = folder / "generation.json"
    notes = {"images": read_settings(made) if made.is_file() else str(folder), "samples": given.num_samples}
    return gedit.benchmark(folder, language=given.language, samples=given.num_samples), notes


def _compare(given: flags.FlagValues) -> None:
    if len(given.compare) != 2:
        raise InputError(f"--compare wants two result files, got {len(given.compare)}")
    a, b = map(read_results, given.compare)
    bench = gedit.benchmark("") if given.bench == "gedit" else BENCHMARKS[given.bench]
    result = compare(
        a, b, bench, allow_different_identity=given.allow_different_identity, resamples=given.resamples, seed=given.seed
    )
    print(comparison_table(result))
    if given.out:
        folder = pathlib.Path(given.out)
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
    define_flags()
    cli.run(main)
