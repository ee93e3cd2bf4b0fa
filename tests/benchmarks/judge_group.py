"""Times the scoring of one group - a source, its edits, SC and PQ of each - from decoded pictures to texts.

    python tests/benchmarks/judge_group.py --size=embedded --json=group.json
    python tests/benchmarks/judge_group.py --size=512 --layers=12 --side=256 --reference=transformers

The group is EditWorld's, with random weights; both sides are made to write the same answers, EditWorld's true ones,
so that they read and write the same tokens: ours by a sampler, `transformers` by a logits processor in its `generate`
(left-padded batches, SC first, then PQ). All that a caller waits for is timed: image processing, tokenizer, texts.

`group` has everything on. Each other row is without one thing; its `group_over_this` says what that thing saves:

    plain           no grammar, as the official judge decodes: a pass of the net for each token
    single          grammar, but one token a pass: no jump-forward
    whole           no beginning of a prompt is shared
    apart           no picture is shared either: each question encodes its own
    waiting         as `apart`, and in batches that wait for their longest answer, without refill; its
                    `apart_over_this` is what refill alone saves
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import flops
import jax
import jax.numpy as jnp
import nets
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data import editworld
from spatialreward_jax.generate import Picked
from spatialreward_jax.io.pretrained import ASSETS, read_json
from spatialreward_jax.reward.batching import LIMITS, Limits
from spatialreward_jax.reward.loading import JudgeNet, load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Question, questions, read_edits
from spatialreward_jax.reward.templates import load_templates
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.reward.vlm import VLM, Decoding


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.DEFINE_enum("reference", "", ["", "transformers"], "What runs in torch beside ours.")
    flags.DEFINE_string("size", "embedded", "'embedded', or the decoder's width: a multiple of 128.")
    flags.DEFINE_integer("layers", 12, "Of the decoder, where --size is a width.", lower_bound=1)
    flags.DEFINE_integer("side", 64, "Side in pixels of every picture, at most 256.", lower_bound=32, upper_bound=256)
    flags.DEFINE_integer("edits", 8, "Of the group.", lower_bound=2)
    flags.DEFINE_integer("batch", 8, "Answers decoded together, on both sides.", lower_bound=1)
    flags.DEFINE_string("templates", "compact", "Wording of the questions.")


class Problem(NamedTuple):
    """A judge on disk and in memory, the questions of a group and the answers (token ids, end token included)."""

    folder: pathlib.Path
    net: JudgeNet
    questions: list[Question]
    answers: list[list[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A sampler that writes given answers: whose turn it is follows from a row's key, which is its question's alone.

    The token is still the likeliest of all logits, those of others being left out, so that no work is left out.
    """

    keys: np.ndarray
    """uint32 [N, 2], of every token of every answer."""
    tokens: np.ndarray
    """int32 [N]."""
    needs_seen: bool = False

    @classmethod
    def of(cls, judge: VLM, asked: Sequence[Question], answers: Sequence[Sequence[int]]) -> "Given":
        """The answers of some questions."""
        keys = lambda seed, count: jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.arange(count))
        seeds = [np.uint32(one.seed) for one in judge.arrays(asked)[0]]
        data = [jax.random.key_data(keys(seed, len(answer))) for seed, answer in zip(seeds, answers)]
        return cls(np.concatenate(data), np.concatenate(answers).astype(np.int32))

    def pick(self, logits: jax.Array, seen: jax.Array, keys: jax.Array, allowed: jax.Array | None = None) -> Picked:
        """As `Sampler.pick`."""
        here = (jax.random.key_data(keys)[:, None] == self.keys).all(-1)
        wanted = jnp.asarray(self.tokens)[jnp.argmax(here, axis=1)]
        mask = jnp.arange(logits.shape[1]) == wanted[:, None]
        token = jnp.argmax(jnp.where(mask if allowed is None else mask & allowed, logits, -jnp.inf), axis=1)
        logp = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        return Picked(token.astype(jnp.int32), logp, logp)


def pose(folder: pathlib.Path, config: dict[str, Any], given: flags.FlagValues) -> Problem:
    """Writes the judge and makes the group."""
    nets.write_judge(folder, config, given.seed)
    for file in (ASSETS / "embedded" / "judge").glob("*.json"):
        if file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, folder)
    settings = read_json(folder / "preprocessor_config.json")
    settings["patch_size"] = config["vision_config"]["patch_size"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    sample, rng = editworld.sample_edit("test", given.seed), np.random.default_rng(given.seed)
    tokenizer, net = Processor(folder).tokenizer, load_judge(folder, dtype="float32")
    picture = lambda image: _sized(image, given.side)
    source, templates, asked, answers = (
        picture(editworld.render(sample.source)),
        load_templates(given.templates),
        [],
        [],
    )
    for _ in range(given.edits):
        candidate = editworld.random_candidate(sample, rng)
        edit = Edit(source, picture(candidate.image()), sample.instruction)
        asked += questions(read_edits([edit])[0], templates)
        for text in (editworld.consistency_answer(candidate), editworld.quality_answer(candidate)):
            answers.append([*tokenizer.encode(text, add_special_tokens=False), net.eos[0]])
    return Problem(folder, net, asked, answers)


def _sized(image: np.ndarray, side: int) -> np.ndarray:
    """Nearest pixels, `side` x `side`."""
    rows, columns = (np.arange(side) * n // side for n in image.shape[:2])
    return np.ascontiguousarray(image[rows][:, columns])


def judge_of(p: Problem, *, constrained: bool = True, limits: Limits = LIMITS) -> VLM:
    """A judge whose sampler is still to be given."""
    decoding = Decoding(max_new_tokens=max(map(len, p.answers)) + 8, constrained=constrained)
    return VLM(p.net, Processor(p.folder), decoding, model="benchmark", limits=limits)


def ours(p: Problem, batch: int) -> dict[str, Callable[[], list[str]]]:
    """Programs that answer the group's questions; each returns the texts."""
    apart = [dataclasses.replace(q, images=tuple(_marked(i, n) for i in q.images)) for n, q in enumerate(p.questions)]

    def program(judge: VLM, asked: Sequence[Question], at_a_time: int = len(p.questions)):
        judge.engine.sampler = Given.of(judge, asked, p.answers)

        def run() -> list[str]:
            parts = [asked[start : start + at_a_time] for start in range(0, len(asked), at_a_time)]
            return [reply.text for part in parts for reply in judge.answer(part)]

        return run

    limited = lambda **limits: judge_of(p, limits=Limits(batch=batch, **limits))
    return {
        "group": program(limited(), p.questions),
        "plain": program(judge_of(p, constrained=False, limits=Limits(batch=batch)), p.questions),
        "single": program(limited(stride=1), p.questions),
        "whole": program(limited(beginnings=0), p.questions),
        "apart": program(limited(beginnings=0), apart),
        "waiting": program(limited(beginnings=0), apart, batch),
    }


def _marked(image: np.ndarray, number: int) -> np.ndarray:
    """The picture with one other pixel: no longer the same."""
    image = image.copy()
    image[0, 0] = number
    return image


def reference(p: Problem, batch: int) -> Callable[[], list[str]]:
    """The same in transformers."""
    import torch
    import torch_judge
    import transformers

    transformers.logging.set_verbosity_error()
    judge = torch_judge.Judge(p.folder)

    class Wanted(transformers.LogitsProcessor):
        """Leaves the wanted token alone; `answers` belong to the rows of the batch."""

        def __init__(self, answers: Sequence[Sequence[int]], prompt: int):
            longest = max(map(len, answers)) + 1
            self.rows = torch.tensor([[*row, *[judge.pad] * (longest - len(row))] for row in answers])
            self.prompt = prompt

        def __call__(self, ids, scores):
            wanted = self.rows[:, ids.shape[1] - self.prompt][:, None]
            return torch.full_like(scores, -torch.inf).scatter(1, wanted, scores.gather(1, wanted))

    def answer(rows: Sequence[int]) -> list[str]:
        chats = [judge.chat(p.questions[row].text, len(p.questions[row].images)) for row in rows]
        inputs = judge.inputs(chats, [list(p.questions[row].images) for row in rows])
        length = inputs["input_ids"].shape[1]
        out = judge.net.generate(
            **inputs,
            mm_token_type_ids=judge.kinds(inputs["input_ids"]),
            max_new_tokens=max(len(p.answers[row]) for row in rows),
            do_sample=False,
            logits_processor=transformers.LogitsProcessorList([Wanted([p.answers[row] for row in rows], length)]),
        )
        return [text.strip() for text in judge.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)]

    @torch.no_grad()
    def run() -> list[str]:
        texts = [""] * len(p.questions)
        order = [*range(0, len(texts), 2), *range(1, len(texts), 2)]  # SC, PQ: rows of a batch are alike
        for start in range(0, len(texts), batch):
            rows = order[start : start + batch]
            for row, text in zip(rows, answer(rows)):
                texts[row] = text
        return texts

    return run


def work(p: Problem) -> common.Work:
    """The least that must be done: each picture once, the source's beginning once, every other token once."""
    config, judge = p.net.config, judge_of(p, constrained=False)
    asked, images = judge.arrays(p.questions)
    total = sum(flops.qwen3_vision(config, len(image.values)) for image in images)
    total += flops.qwen3_text(config, asked[0].begin)
    for one, answer in zip(asked, p.answers):
        begin = one.begin if len(one.images) > 1 else 0
        total += flops.qwen3_text(config, len(one.tokens) - begin, begin)
        total += sum(flops.qwen3_text(config, 1, len(one.tokens) + n) for n in range(len(answer) - 1))
    return common.Work(total)


def saved(p: Problem) -> dict[str, float]:
    """GFLOP that sharing saves: pictures shown again, and beginnings of prompts that are those of others."""
    config = p.net.config
    asked, images = judge_of(p, constrained=False).arrays(p.questions)
    shown = sum(flops.qwen3_vision(config, len(images[image].values)) for one in asked for image in one.images)
    encoded = sum(flops.qwen3_vision(config, len(image.values)) for image in images)
    begins = [one.begin for one in asked if len(one.images) > 1]
    begin = flops.qwen3_text(config, begins[0]) - 2 * config.text.dim * config.text.vocab
    return {"pictures": round((shown - encoded) / 1e9, 3), "beginnings": round((len(begins) - 1) * begin / 1e9, 3)}


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    config, torch = nets.judge_config(given.size, given.layers), None
    if given.reference:
        import torch

        torch.set_num_threads(given.threads)
    report = common.environment(given, ("transformers", "torch") if given.reference else ())
    with tempfile.TemporaryDirectory() as path:
        problem = pose(pathlib.Path(path), config, given)
        runs = ours(problem, given.batch)
        if given.reference:
            runs["group/transformers"] = reference(problem, given.batch)
        asked, _ = judge_of(problem).arrays(problem.questions)
        text = problem.net.config.text
        layer = (sum(len(one.tokens) for one in asked), text.dim, text.mlp)
        timed = {name: lambda run=run: run() is None for name, run in runs.items()}
        seconds = common.interleaved({**common.probes(torch, layer), **timed}, given.rounds)
        machine, needed, less = common.Machine.of(seconds, layer), work(problem), saved(problem)
        lengths = sorted({len(one.tokens) for one in asked})
        decode = Processor(problem.folder).decode
        wrong = {name: run() != [decode(ids[:-1]) for ids in problem.answers] for name, run in runs.items()}
    rows = {name: common.row(seconds, name, needed, machine) for name in runs if "/" not in name}
    for row in rows.values():
        row["group_over_this"] = round(rows["group"]["ms"] / row["ms"], 3)
    rows["waiting"]["apart_over_this"] = round(rows["apart"]["ms"] / rows["waiting"]["ms"], 3)
    report |= {
        "config": config,
        "parameters": nets.count(problem.net.base),
        "questions": len(problem.questions),
        "answer_tokens": [len(answer) for answer in problem.answers],
        "prompt_tokens": lengths,
        "gflop_saved": less,
        "machine": machine.report(),
        "rows": rows,
        "wrong_texts": [name for name, bad in wrong.items() if bad],
    }
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
