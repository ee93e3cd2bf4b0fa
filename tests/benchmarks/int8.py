"""How much a judge changes with int8 weights, and what they save: agreement of the two, memory, speed. JSON out.

    python tests/benchmarks/int8.py --model=JUDGE --jsonl=edits.jsonl --json=int8.json
    python tests/benchmarks/int8.py --model=embedded --edits=64

Edits come from a file as `spatialreward_jax.score` takes it, or from EditWorld. Both judges score them greedily; then
both read the plain judge's own answers, which compares them even where an untrained judge gives no scores. The report:

    weights_gb          of each judge
    scores              valid: of each judge; both: edits with two scores, of which spearman, mean and largest
                        difference of `overall` (0..10), and the share of pairs that both order alike
    answers             of the plain judge, read by both: spearman of their log-probabilities, mean and largest
                        difference per token in nats, share of tokens that are the likeliest for both or for neither
    truth               EditWorld alone: spearman of each judge's valid scores with the exact rewards
    speed               seconds per edit (scoring from decoded images on), milliseconds of a decoding step

Both judges are held at a time. What decides whether to use int8 is `spearman` beside what a change of the sampling
seed or of bfloat16 against float32 (--dtype) does.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.chat_rows import question_row
from spatialreward_jax.data.editworld import exact_reward, random_candidate, render, sample_edit
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.ranking import ranks
from spatialreward_jax.models.qwen3_vl import empty_cache
from spatialreward_jax.reward.chats import ChatRow
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import JudgeNet
from spatialreward_jax.reward.protocol import questions, read_edits
from spatialreward_jax.reward.supervision import AnswerBatch, pack_chats
from spatialreward_jax.reward.types import Edit, Score
from spatialreward_jax.reward.vlm import Decoding
from spatialreward_jax.score import read_rows, to_edits

JUDGES = ("plain", "int8")


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.DEFINE_string("model", "embedded", "The judge: a folder in Hugging Face layout, or embedded.")
    flags.DEFINE_string("adapter", "", "PEFT folder to put on the judge.")
    flags.DEFINE_string("dtype", "", "Of activations and of the plain judge's weights; by default the backend's.")
    flags.DEFINE_string("jsonl", "", "Edits, a line each; by default EditWorld's.")
    flags.DEFINE_integer("edits", 32, "How many edits.", lower_bound=2)
    flags.DEFINE_integer("max_new_tokens", 0, "Longest answer; 0: what the judge's folder says.", lower_bound=0)
    flags.DEFINE_integer("batch", 8, "Answers that are read, and decoded in the timed step, at a time.", lower_bound=1)
    flags.DEFINE_integer("slots", 1024, "Length of the cache in the timed step.", lower_bound=1)


def read(given: flags.FlagValues) -> tuple[list[Edit], np.ndarray | None]:
    """-> (edits, their exact rewards [N] or None)."""
    if given.jsonl:
        return to_edits(read_rows(given.jsonl)[: given.edits]), None
    edits, rewards = [], []
    for index in range(given.edits):
        sample = sample_edit("validation", index, seed=given.seed)
        candidate = random_candidate(sample, np.random.default_rng((given.seed, index)))
        edits.append(Edit(render(sample.source), candidate.image(), sample.instruction))
        rewards.append(exact_reward(candidate))
    return edits, np.array(rewards)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho of two lists; None where it does not exist."""
    a, b = ranks(a), ranks(b)
    return round(float(np.corrcoef(a, b)[0, 1]), 4) if len(a) > 1 and np.ptp(a) and np.ptp(b) else None


def agreement(plain: Sequence[Score], ours: Sequence[Score]) -> dict[str, Any]:
    """How far two judges' scores agree."""
    pairs = np.array([(p.overall, o.overall) for p, o in zip(plain, ours) if p.valid and o.valid]).reshape(-1, 2)
    out: dict[str, Any] = {
        "valid": {name: sum(s.valid for s in scores) for name, scores in zip(JUDGES, (plain, ours))},
        "both": len(pairs),
        "same_answers": sum(p.raw_sc == o.raw_sc and p.raw_pq == o.raw_pq for p, o in zip(plain, ours)),
    }
    if len(pairs) > 1:
        apart = np.abs(pairs[:, 0] - pairs[:, 1])
        alike = [np.sign(a[0] - b[0]) == np.sign(a[1] - b[1]) for a, b in itertools.combinations(pairs, 2)]
        out["spearman"] = spearman(*pairs.T)
        out["mean_difference"], out["largest_difference"] = float(apart.mean()), float(apart.max())
        out["pairs_alike"] = float(np.mean(alike))
    return out


def answered(model: RewardModel, edits: Sequence[Edit], scores: Sequence[Score]) -> list[ChatRow]:
    """The judge's questions with its own answers."""
    rows = []
    for edit, score in zip(read_edits(edits), scores):
        sc, pq = questions(edit, model.templates)
        rows += [question_row(q.images, q.text, raw) for q, raw in ((sc, score.raw_sc), (pq, score.raw_pq)) if raw]
    return rows


def reader(net: JudgeNet) -> Callable[[AnswerBatch], tuple[np.ndarray, np.ndarray]]:
    """-> run(answers): log-probability of each token [B, A], and whether it is the likeliest."""

    @jax.jit
    def run(adapters, base, batch):
        model, prompt = net.merge(adapters, base), batch.prompt
        features = model.images(batch.patches, batch.grid)
        hidden = model(prompt.tokens, prompt.image_index, prompt.positions, features)
        return model.judged(jnp.take_along_axis(hidden, batch.at[..., None], axis=1), batch.targets)

    def call(batch):
        with jax.set_mesh(net.mesh):
            return jax.device_get(run(net.adapters, net.base, batch))

    return call


def reading(models: Sequence[RewardModel], rows: Sequence[ChatRow], batch: int) -> dict[str, Any]:
    """How far two judges agree on given answers."""
    processor, side = models[0].answerer.processor, models[0].answerer.net.config.vision.side
    readers = [reader(model.answerer.net) for model in models]
    sums, gaps, hits = [], [], []
    for start in range(0, len(rows), batch):
        packed = pack_chats(rows[start : start + batch], processor, side=side)
        (a, hit_a), (b, hit_b) = (read(packed) for read in readers)
        real = packed.weight.astype(bool)
        sums += [(x[row].sum(), y[row].sum()) for x, y, row in zip(a, b, real)]
        gaps.append(np.abs(a - b)[real])
        hits.append((hit_a == hit_b)[real])
    gaps = np.concatenate(gaps)
    return {
        "count": len(rows),
        "tokens": len(gaps),
        "spearman": spearman(*np.transpose(sums)),
        "mean_difference_per_token": float(gaps.mean()),
        "largest_difference_per_token": float(gaps.max()),
        "tokens_alike": float(np.concatenate(hits).mean()),
    }


def decoding_step(net: JudgeNet, batch: int, slots: int) -> Callable[[], jax.Array]:
    """-> run(): one step of a half-full cache."""
    half = jnp.full((batch,), slots // 2, jnp.int32)
    cache = empty_cache(net.config.text, batch, slots, net.dtype).replace(length=half)
    step = jax.jit(lambda adapters, base, token, cache: net.merge(adapters, base).next_logits(token, cache)[0])
    token = jnp.zeros(batch, jnp.int32)
    return lambda: step(net.adapters, net.base, token, cache)


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    edits, truth = read(given)
    models = [
        RewardModel.from_pretrained(
            given.model,
            adapter=given.adapter or None,
            dtype=given.dtype or None,
            decoding=Decoding(max_new_tokens=given.max_new_tokens) if given.max_new_tokens else None,
            quantize=None if name == "plain" else name,
        )
        for name in JUDGES
    ]
    scores = [model.score(edits) for model in models]
    rows = answered(models[0], edits, scores[0])
    if not rows:
        raise InputError(f"{given.model} answered nothing at all: there is nothing to compare")
    nets = [model.answerer.net for model in models]
    work = {}
    for name, model in zip(JUDGES, models):
        work[f"score/{name}"] = lambda model=model: len(model.score(edits))
        work[f"step/{name}"] = decoding_step(model.answerer.net, given.batch, given.slots)
    seconds = {name: statistics.median(s) for name, s in common.interleaved(work, given.rounds).items()}
    each = lambda kind, factor: {name: round(seconds[f"{kind}/{name}"] * factor, 4) for name in JUDGES}
    size = lambda net: sum(leaf.nbytes for leaf in jax.tree.leaves(net.base)) / 1e9
    report = {
        **common.environment(given, ()),
        "device": jax.devices()[0].device_kind,
        "dtype": str(nets[0].dtype),
        "revisions": [net.revision for net in nets],
        "edits": len(edits),
        "weights_gb": {name: round(size(net), 4) for name, net in zip(JUDGES, nets)},
        "scores": agreement(*scores),
        "answers": reading(models, rows, given.batch),
        "speed": {"seconds_per_edit": each("score", 1 / len(edits)), "ms_per_step": each("step", 1e3)},
    }
    if truth is not None:
        valid = [[(s.overall, t) for s, t in zip(one, truth) if s.valid] for one in scores]
        report["truth"] = {name: spearman(*zip(*one)) if one else None for name, one in zip(JUDGES, valid)}
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
