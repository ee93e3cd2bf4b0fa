"""The decoding loop, over a net that is a table: the next token's logits are the last token's row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import answers, begin, bucket, generate, insert, make_sampler, text_of

VOCAB, END, PAD = 12, 11, 10


def table_step(table, token, cache):
    """`cache` counts the steps; a real net keeps keys and values there."""
    return table[token], cache + 1


def counting_table():
    """Row i wants i + 1."""
    return 5.0 * jax.nn.one_hot((jnp.arange(VOCAB) + 1) % VOCAB, VOCAB)


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def run(table, state, enough, *, sampler):
    return generate(table_step, table, state, sampler=sampler, eos=(END,), pad=PAD, enough=enough)


def begun(table, starts, seeds, *, sampler, max_new=8, active=None):
    prompt, length = jnp.array(starts, jnp.int32)[:, None], jnp.ones(len(starts), jnp.int32)
    how = {"sampler": sampler, "max_new": max_new, "pad": PAD, "active": active}
    return begin(table[prompt[:, 0]], jnp.zeros((), jnp.int32), prompt, length, np.array(seeds), **how)


def decode(table, starts, *, sampler=None, seeds=None, max_new=8, active=None):
    sampler = sampler or make_sampler()
    seeds = np.arange(len(starts)) if seeds is None else seeds
    state = begun(table, starts, seeds, sampler=sampler, max_new=max_new, active=active)
    state = run(table, state, len(starts), sampler=sampler)
    return answers(state, (END,)), state


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
    assert int(state.passes) == int(state.cache) == 2
    assert answer.finished.all()


def test_filling_rows_are_done_from_the_start():
    answer, state = decode(counting_table(), [9, 1], active=jnp.array([True, False]))
    assert int(state.passes) == 1
    np.testing.assert_array_equal(answer.tokens[1], PAD)
    np.testing.assert_array_equal(answer.length, [2, 0])
    np.testing.assert_array_equal(answer.finished, [True, False])


@pytest.mark.parametrize(
    "sampler", [make_sampler(), make_sampler(temperature=1.0), make_sampler(repetition_penalty=2.0)]
)
def test_rows_that_came_later_answer_the_same(sampler):
    """Two slots, five requests: whoever waits gets the first slot that is free, and nobody's answer changes."""
    table = 3 * jax.random.normal(jax.random.key(4), (VOCAB, VOCAB)) + counting_table()
    starts, seeds = [1, 7, 9, 4, 8], [5, 6, 7, 8, 9]
    alone, _ = decode(table, starts, sampler=sampler, seeds=seeds, max_new=12)
    assert len(set(map(int, alone.length))) > 2  # slots do not end together
    state = begun(table, starts[:2], seeds[:2], sampler=sampler, max_new=12)
    holds, waiting, order = [0, 1], [2, 3, 4], []
    while any(one is not None for one in holds):
        state = run(table, state, 1 if waiting else 2, sampler=sampler)
        found = jax.device_get(answers(state, (END,)))
        for slot, one in enumerate(holds):
            if one is None or not state.done[slot]:
                continue
            order.append(one)
            np.testing.assert_array_equal(found.tokens[slot], alone.tokens[one])
            np.testing.assert_allclose(found.logp[slot], alone.logp[one], rtol=1e-5)
            np.testing.assert_allclose(found.raw_logp[slot], alone.raw_logp[one], rtol=1e-5)
            assert found.length[slot] == alone.length[one] and found.finished[slot] == alone.finished[one]
            holds[slot] = waiting.pop(0) if waiting else None
            if holds[slot] is not None:
                new = begun(table, [starts[holds[slot]]] * 2, [seeds[holds[slot]]] * 2, sampler=sampler, max_new=12)
                state = insert(state, new, jnp.array([slot, 2]), state.cache)  # the second row has no place: dropped
    assert sorted(order) == [0, 1, 2, 3, 4] != order


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
    assert [bucket(n, parts=4) for n in (1, 64, 65, 81, 128, 129, 900)] == [64, 64, 80, 96, 128, 160, 1024]
    assert [bucket(n, least=16, parts=4) for n in (3, 17, 21, 33)] == [16, 20, 24, 40]
    assert bucket(900, most=1000) == 1000
    with pytest.raises(InputError, match="1001 does not fit into the largest bucket of 1000"):
        bucket(1001, most=1000)


def test_text_of_drops_the_end_token():
    assert text_of(np.array([4, 5, END, PAD]), 3, (END,)) == [4, 5]
    assert text_of(np.array([4, 5, 6]), 3, (END,)) == [4, 5, 6]
