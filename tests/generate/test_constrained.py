"""Answers under the judge's grammar with made-up logits: every one parses, whatever the net says."""

import functools
import json
import re
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax import generate
from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld.tokenizer import brief_answer
from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import check_room, compile_grammar, make_sampler, text_of
from spatialreward_jax.generate.token_tables import token_bytes
from spatialreward_jax.io.huggingface import load_tokenizer
from spatialreward_jax.io.pretrained import resolve
from spatialreward_jax.reward.answer_grammar import answer_grammar
from spatialreward_jax.reward.parsing import parse

VOCAB, PAD, EOS = 2080, 2026, (2028, 2026)
ROWS, MAX_NEW, KINDS = 256, 160, 61
GRAMMAR, STARTS = answer_grammar()
STREAMS = ["sc", "pq"] * (ROWS // 2)
GREEDY = make_sampler()
NOISE = 4 * np.random.default_rng(0).standard_normal((KINDS, VOCAB)).astype(np.float32)


@pytest.fixture(scope="module", params=["embedded", "golden"])
def tokenizer(request, goldens):
    return load_tokenizer(resolve("embedded", "judge") if request.param == "embedded" else goldens / "spatialreward")


@functools.cache
def tables_of(tokenizer):
    return compile_grammar(GRAMMAR, tokenizer, vocab=VOCAB, eos=EOS)


def kind_of(seed, place, last):
    return (97 * seed + 7 * place + 31 * last) % KINDS


def net(params, tokens, at, keep, cache):
    """Noise that depends on a row's seed, place and last token, and a pull towards wanted tokens [B, T].

    `cache` counts the tokens of each row.
    """
    noise, seed, wanted, pull = params
    place, last = cache + at, jnp.take_along_axis(tokens, at[:, None], axis=1)[:, 0]
    target = jnp.take_along_axis(wanted, jnp.minimum(place + 1, wanted.shape[1] - 1)[:, None], axis=1)[:, 0]
    return noise[kind_of(seed, place, last)] + pull * jax.nn.one_hot(target, VOCAB), cache + keep


class Out(NamedTuple):
    """Answers of all rows, passes of the net, expected scores."""

    answer: generate.Answer
    passes: jax.Array
    expected: jax.Array


@functools.partial(jax.jit, static_argnames=("sampler", "max_new", "expected"))
def run(params, tables, nodes, *, sampler, max_new, expected):
    _, seed, _, _ = params
    rows, zero = nodes.shape[0], jnp.zeros(nodes.shape, jnp.int32)
    first, _ = net(params, jnp.zeros((rows, 1), jnp.int32), zero, zero, zero - 1)
    how = {"sampler": sampler, "max_new": max_new, "pad": PAD}
    state = generate.begin(first, zero, jnp.zeros((rows, 1), jnp.int32), zero, seed, **how)
    how = {"tables": tables, "sampler": sampler, "eos": EOS, "expected": expected}
    state = generate.generate_constrained(net, params, generate.under_grammar(state, nodes), **how)
    return Out(generate.answers(state, EOS), state.passes, state.grammar.expected)


def answers(tokenizer, seeds, streams, *, wanted=None, pull=0.0, sampler=GREEDY, max_new=MAX_NEW, expected=True):
    wanted = np.zeros((len(seeds), MAX_NEW), np.int32) if wanted is None else wanted
    nodes = np.array([STARTS[stream] for stream in streams], np.int32)
    params = (NOISE, np.array(seeds, np.int32), wanted, np.float32(pull))
    out = run(params, tables_of(tokenizer), nodes, sampler=sampler, max_new=max_new, expected=expected)
    return jax.device_get(out)


def ids_of(out, row):
    return text_of(out.answer.tokens[row], out.answer.length[row], EOS)


def texts(tokenizer, out):
    assert out.answer.finished.all()
    return [tokenizer.decode(ids_of(out, row), clean_up_tokenization_spaces=False) for row in range(len(out.expected))]


def check(text, stream):
    """Every constraint, without the help of the grammar; -> the parsed answer."""
    parsed = parse(text, "strict", regions=stream == "sc")
    assert parsed.scores is not None, (text, parsed.error)
    assert all(score == int(score) for score in parsed.scores) and parsed.reasoning
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


def test_a_thousand_random_answers_parse(tokenizer):
    """Half of them from pure noise, half from a net that often enough wants what stands in EditWorld's answers."""
    regions, cited, spaced = [], 0, 0
    _, ids, _ = wanted_answers(tokenizer)
    for part, pull in enumerate((0.0, 8.0, 0.0, 12.0)):
        out = answers(tokenizer, part * ROWS + np.arange(ROWS), STREAMS, wanted=padded(ids), pull=pull)
        for text, stream in zip(texts(tokenizer, out), STREAMS):
            parsed = check(text, stream)
            assert GRAMMAR.accepts(text, STARTS[stream])
            regions.append(len(parsed.regions))
            cited += "<|bbox_" in parsed.reasoning
            spaced += '": ' in text
    assert max(regions) > 1 and cited > 0 and 0 < spaced < 4 * ROWS


@pytest.mark.parametrize("tokenizer", ["golden"], indirect=True)
def test_sampling_rules_apply_among_what_is_allowed(tokenizer):
    """Drawn answers of a tight budget; forced tokens have log-probability 0."""
    sampler = make_sampler(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2)
    out = answers(tokenizer, np.arange(ROWS), STREAMS, sampler=sampler, max_new=48, expected=False)
    for text, stream in zip(texts(tokenizer, out), STREAMS):
        check(text, stream)
    logp = out.answer.logp
    assert np.isfinite(logp).all() and (logp <= 0).all() and (logp < -0.1).any() and np.isnan(out.expected).all()
    written = np.arange(48) < out.answer.length[:, None]
    assert ((logp == 0) & written).any(axis=1).all()


def test_the_shortest_answer_just_fits(tokenizer):
    tables = tables_of(tokenizer)
    least = int(tables.reserve[STARTS["sc"]])
    out = answers(tokenizer, np.arange(ROWS), ["sc"] * ROWS, max_new=least, expected=False)
    assert {check(text, "sc").regions for text in texts(tokenizer, out)} == {()}
    check_room(tables, STARTS.values(), least)
    with pytest.raises(InputError, match=f"the shortest constrained answer takes {least} tokens"):
        check_room(tables, STARTS.values(), least - 1)


def padded(ids):
    return np.array([[*row, EOS[0], *[PAD] * (MAX_NEW - 1 - len(row))] for row in ids], np.int32)


@functools.cache
def wanted_answers(tokenizer):
    """EditWorld's answers in both forms that fit -> texts, token ids, streams."""
    found, index = [], 0
    while len(found) < ROWS:
        candidate = editworld.random_candidate(editworld.sample_edit("test", index), np.random.default_rng(index))
        pair = brief_answer(candidate), editworld.quality_answer(candidate)
        for text, stream in zip(pair, ("sc", "pq")):
            for form in (text, json.dumps(json.loads(text))):
                ids = tokenizer.encode(form, add_special_tokens=False)
                found += [(form, ids, stream)] if len(ids) < MAX_NEW - 20 else []
        index += 1
    return list(zip(*found[:ROWS]))


def test_a_net_can_write_what_it_wants_in_fewer_passes(tokenizer):
    """Answers come out token by token as the tokenizer writes them; forced tokens take no pass of their own."""
    want, ids, streams = wanted_answers(tokenizer)
    out = answers(tokenizer, np.arange(ROWS), streams, wanted=padded(ids), pull=100.0)
    assert texts(tokenizer, out) == list(want)
    assert [ids_of(out, row) for row in range(ROWS)] == [list(row) for row in ids]
    row = int(np.argmax(out.answer.length * (np.array(streams) == "sc")))
    alone = answers(tokenizer, [row] * ROWS, ["sc"] * ROWS, wanted=padded([ids[row]] * ROWS), pull=100.0)
    peeks = 2 * 2  # of the two scores
    assert alone.passes - peeks < 0.75 * alone.answer.length[0]


def test_rows_do_not_depend_on_their_neighbours(tokenizer):
    seeds = np.arange(ROWS)
    together = answers(tokenizer, seeds, STREAMS)
    turned = answers(tokenizer, seeds[::-1], STREAMS[::-1])
    np.testing.assert_array_equal(together.answer.tokens, turned.answer.tokens[::-1])
    np.testing.assert_allclose(together.expected, turned.expected[::-1], rtol=1e-6)


def test_expected_scores_are_the_mean_over_all_ways_to_write_a_number(tokenizer):
    """Against an enumeration on the host that knows the texts of tokens, not the tables."""
    out = answers(tokenizer, np.arange(ROWS), STREAMS)
    spelled = {i: text.decode() for i, text in token_bytes(tokenizer).items() if text.isascii()}
    for row in range(0, ROWS, 16):
        ids, text = ids_of(out, row), ""
        begins = []
        for place, token in enumerate(ids):
            behind = text[text.rfind('"score":') :] if '"score":' in text else ""
            begins += [place] if re.fullmatch(r'"score": ?\[(\d+, ?)?', behind) else []
            text += spelled.get(token, "?")
        space = '": [' in text
        begins = [begins[0], begins[-1]]  # between them a space may come as a token of its own
        for score, place in enumerate(begins):
            tails = [", ", ","] if space and score == 0 else [","] if score == 0 else ["]", "]}"]
            mean = _mean(spelled, tails, row, place, ids[place - 1])
            np.testing.assert_allclose(out.expected[row, score], mean, rtol=1e-4, atol=1e-4)


def _mean(spelled, tails, seed, place, last):
    digits = {text: i for i, text in spelled.items() if re.fullmatch(r"0|[1-9]\d?", text) and int(text) <= 25}
    total = 0.0
    for text, share in _shares(digits, kind_of(seed, place - 1, last)).items():
        ways = {tail: digits_id for tail, digits_id in ((t, i) for i, t in spelled.items()) if tail in tails}
        ways |= {d: i for i, d in spelled.items() if re.fullmatch(r"\d", d) and int(text + d) <= 25 and text != "0"}
        for behind, part in _shares(ways, kind_of(seed, place, digits[text])).items():
            total += share * part * int(text + behind if behind.isdigit() else text)
    return total


def _shares(ways, kind):
    logits = np.array([NOISE[kind, i] for i in ways.values()], np.float64)
    return dict(zip(ways, np.exp(logits) / np.exp(logits).sum()))


def test_tokenizers_that_do_not_do():
    def words(decoder, vocab):
        backend = SimpleNamespace(to_str=lambda: json.dumps({"decoder": {"type": decoder}}))
        return SimpleNamespace(backend_tokenizer=backend, added_tokens_decoder={}, get_vocab=lambda: vocab)

    with pytest.raises(InputError, match="need a tokenizer over bytes"):
        compile_grammar(GRAMMAR, words("WordPiece", {"a": 0}), vocab=8, eos=(1,))
    with pytest.raises(InputError, match="no token for a byte"):
        compile_grammar(GRAMMAR, words("ByteLevel", {"a": 0}), vocab=8, eos=(1,))
