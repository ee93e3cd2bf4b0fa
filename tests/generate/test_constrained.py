"""Answers under the judge's grammar with random logits: every one parses, whatever the net says."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.data import editworld
from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import begin, check_room, compile_grammar, generate_constrained, make_sampler, text_of
from spatialreward_jax.io.huggingface import load_tokenizer
from spatialreward_jax.io.pretrained import resolve
from spatialreward_jax.reward.answer_grammar import AnswerBounds, answer_grammar
from spatialreward_jax.reward.parsing import parse

VOCAB, PAD, EOS = 2080, 2026, (2028, 2026)
GRAMMAR, STARTS = answer_grammar()


@pytest.fixture(scope="module", params=["embedded", "golden"])
def tokenizer(request, goldens):
    return load_tokenizer(resolve("embedded", "judge") if request.param == "embedded" else goldens / "spatialreward")


@functools.cache
def tables_of(tokenizer, bounds=None):
    grammar = GRAMMAR if bounds is None else answer_grammar(bounds)[0]
    return compile_grammar(grammar, tokenizer, vocab=VOCAB, eos=EOS)


def noise(seeds, tokens, at, keep, cache):
    """A net of random logits; `cache` counts the tokens of each row."""
    keys = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(seeds), cache + at)
    return 4 * jax.vmap(lambda key: jax.random.normal(key, (VOCAB,)))(keys), cache + keep


def follow(wanted, tokens, at, keep, cache):
    """A net that wants the tokens wanted [B, T] one after another."""
    place = jnp.minimum(cache + at + 1, wanted.shape[1] - 1)
    target = jnp.take_along_axis(wanted, place[:, None], axis=1)
    return 10 * jax.nn.one_hot(target[:, 0], VOCAB), cache + keep


@functools.partial(jax.jit, static_argnames=("net", "sampler", "max_new", "expected", "stride"))
def run(params, first, tables, nodes, seeds, *, net, sampler, max_new, expected=False, stride=8):
    batch = nodes.shape[0]
    prompt = jnp.zeros((batch, 1), jnp.int32)
    state = begin(
        jnp.zeros((batch,), jnp.int32), prompt, prompt[:, 0], seeds, sampler=sampler, vocab=VOCAB, max_new=max_new, pad=PAD
    )
    return generate_constrained(
        net, params, first, state, tables=tables, nodes=nodes, sampler=sampler, eos=EOS, expected=expected, stride=stride
    )[0]


def random_answers(tokenizer, *, rows, max_new, seed=0, streams=("sc", "pq"), sampler=None, **kw):
    nodes = np.array([STARTS[streams[row % len(streams)]] for row in range(rows)], np.int32)
    seeds = np.arange(rows, dtype=np.uint32) + 1000 * seed
    first = 4 * jax.random.normal(jax.random.key(seed), (rows, VOCAB))
    sampler = sampler or make_sampler(temperature=1.0)
    return run(seeds, first, tables_of(tokenizer), nodes, seeds, net=noise, sampler=sampler, max_new=max_new, **kw)


def texts(tokenizer, out):
    answer = out.answer
    assert np.asarray(answer.finished).all()
    rows = zip(np.asarray(answer.tokens), np.asarray(answer.length))
    return [tokenizer.decode(text_of(row, n, EOS), clean_up_tokenization_spaces=False) for row, n in rows]


def check(text, stream):
    parsed = parse(text, "strict", regions=stream == "sc")
    assert parsed.scores is not None, (text, parsed.error)
    assert all(score == int(score) for score in parsed.scores) and parsed.reasoning
    assert GRAMMAR.accepts(text, STARTS[stream])
    if stream == "pq":
        assert "<|" not in text and list(json.loads(text)) == ["reasoning", "score"]
        return parsed
    assert list(json.loads(text)) == ["edit_region", "reasoning", "score"]
    assert [region.id for region in parsed.regions] == list(range(len(parsed.regions)))
    for region in parsed.regions:
        x1, y1, x2, y2 = region.bbox_2d
        assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000 and region.label and "<|" not in region.label
    marks = re.findall(r"<\|([^|]*)\|>", parsed.reasoning)
    cited = [int(mark.removeprefix("bbox_")) for mark in marks if mark != "global"]
    assert all(0 <= n < len(parsed.regions) for n in cited) and marks.count("global") == 1
    assert parsed.reasoning.count("<|") == len(marks) and not parsed.reasoning.endswith("<|global|>")
    return parsed


@pytest.mark.parametrize("max_new", [48, 96, 200])
def test_thousands_of_random_answers_parse(tokenizer, max_new):
    """512 for each length and tokenizer, half of them SC; the shorter ones are all closed in time."""
    regions, spaced = [], 0
    for text, stream in zip(texts(tokenizer, random_answers(tokenizer, rows=512, max_new=max_new)), ["sc", "pq"] * 256):
        parsed = check(text, stream)
        regions.append(len(parsed.regions))
        spaced += '": ' in text
    assert 0 < spaced < 512
    assert max_new == 48 or max(regions) > 0
