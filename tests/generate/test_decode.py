"""The decoding loop, over a net that is a table: the next token's logits are the last token's row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import begin, bucket, generate, make_sampler, text_of

VOCAB, END, PAD = 12, 11, 10


def table_step(table, token, cache):
    """`cache` counts the steps; a real net keeps keys and values there."""
    return table[token], cache + 1


def counting_table():
    """Row i wants i + 1."""
    return 5.0 * jax.nn.one_hot((jnp.arange(VOCAB) + 1) % VOCAB, VOCAB)


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def run(table, logits, state, *, sampler):
    return generate(table_step, table, logits, state, sampler=sampler, eos=(END,), pad=PAD)


def decode(table, starts, *, sampler=None, seeds=None, max_new=8, active=None):
    sampler = sampler or make_sampler()
    prompt = jnp.array(starts, jnp.int32)[:, None]
    seeds = np.arange(len(starts)) if seeds is None else np.array(seeds)
    length = jnp.ones(len(starts), jnp.int32)
    state = begin(
        jnp.zeros((), jnp.int32),
        prompt,
        length,
        seeds,
        sampler=sampler,
        vocab=VOCAB,
        max_new=max_new,
        pad=PAD,
        active=active,
    )
    return run(table, table[prompt[:, 0]], state, sampler=sampler)


def test_rows_end_on_their_own():
    answer, state = decode(counting_table(), [8, 1, 6])
    np.testing.assert_array_equal(
        answer.tokens, [[9, 10, 11, *[PAD] * 5], [2, 3, 4, 5, 6, 7, 8, 9], [7, 8, 9, 10, 11, *[PAD] * 3]]
    )
    np.testing.assert_array_equal(answer.length, [3, 8, 5])
    np.testing.assert_array_equal(answer.finished, [True, False, True])
    assert (np.asarray(answer.raw_logp) != 0).sum(axis=1).tolist() == [3, 8, 5]
    assert int(state.cache) == 7  # the first token comes from prefill


def test_stops_when_all_rows_are_done():
    answer, state = decode(counting_table(), [9, 8])
    assert int(state.step) == 3 and int(state.cache) == 2
    assert answer.finished.all()


def test_filling_rows_are_done_from_the_start():
    answer, state = decode(counting_table(), [9, 1], active=jnp.array([True, False]))
    assert int(state.step) == 2
    np.testing.assert_array_equal(answer.tokens[1], PAD)
    np.testing.assert_array_equal(answer.length, [2, 0])
    np.testing.assert_array_equal(answer.finished, [True, False])


def test_rows_depend_on_their_seed_alone():
    table = jax.random.normal(jax.random.key(0), (VOCAB, VOCAB))
    sampler = make_sampler(temperature=1.0)
    together, _ = decode(table, [1, 2, 3], sampler=sampler, seeds=[7, 8, 9])
    moved, _ = decode(table, [3, 1], sampler=sampler, seeds=[9, 7])
    np.testing.assert_array_equal(together.tokens[jnp.array([2, 0])], moved.tokens)
    np.testing.assert_allclose(together.logp[jnp.array([2, 0])], moved.logp, rtol=1e-5)
    other, _ = decode(table, [1, 2, 3], sampler=sampler, seeds=[17, 18, 19])
    assert (np.asarray(other.tokens) != np.asarray(together.tokens)).any()


def test_log_probabilities_of_a_sampled_answer():
    table = jax.random.normal(jax.random.key(0), (VOCAB, VOCAB))
    answer, _ = decode(table, [1, 2], sampler=make_sampler(temperature=0.7), seeds=[7, 8])
    for row, start in enumerate([1, 2]):
        before = start
        for i in range(int(answer.length[row])):
            token = int(answer.tokens[row, i])
            np.testing.assert_allclose(answer.raw_logp[row, i], jax.nn.log_softmax(table[before])[token], rtol=1e-5)
            np.testing.assert_allclose(answer.logp[row, i], jax.nn.log_softmax(table[before] / 0.7)[token], rtol=1e-5)
            before = token


def test_repetition_penalty_sees_prompt_and_answer():
    table = jnp.broadcast_to(jnp.arange(VOCAB, 0, -1.0), (VOCAB, VOCAB))  # always wants 0, then 1, ...
    answer, _ = decode(table, [0], sampler=make_sampler(repetition_penalty=100.0), max_new=3)
    np.testing.assert_array_equal(answer.tokens, [[1, 2, 3]])


def test_buckets():
    assert [bucket(n) for n in (1, 64, 65, 97, 129, 193, 900)] == [64, 64, 96, 128, 192, 256, 1024]
    assert bucket(900, most=1000) == 1000
    with pytest.raises(InputError, match="1001 does not fit into the largest bucket of 1000"):
        bucket(1001, most=1000)


def test_text_of_drops_the_end_token():
    assert text_of(np.array([4, 5, END, PAD]), 3, (END,)) == [4, 5]
    assert text_of(np.array([4, 5, 6]), 3, (END,)) == [4, 5, 6]
