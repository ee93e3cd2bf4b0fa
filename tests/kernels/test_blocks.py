"""Which blocks a kernel fetches and computes, from the tables it is given."""

import jax.numpy as jnp
import numpy as np

from spatialreward_jax.kernels import blocks
from spatialreward_jax.kernels.masking import visible
from spatialreward_jax.kernels.xla import Inputs

SIZES = blocks.Sizes(queries=128, keys=128)


def planned(segments, positions):
    keys = segments[1].shape[1]
    arrays = (jnp.zeros((*s.shape, 1, 8)) for s in (segments[0], segments[1], segments[1]))
    plan = blocks.plan(Inputs(*arrays, segments, positions), SIZES)
    mask = np.asarray(visible(segments, positions, keys))
    pad = [(0, 0), (0, plan.queries - mask.shape[1]), (0, plan.keys - keys)]
    cut = np.pad(mask, pad).reshape(len(mask), plan.query_blocks, 128, plan.key_blocks, 128)
    return plan, cut.any(axis=(2, 4)), cut.all(axis=(2, 4))


def cases(plan):
    """What `each_case` would do with every pair of blocks, by its own rule: 0 skip, 1 mask, 2 whole."""
    q, k = np.asarray(plan.query_table), np.asarray(plan.key_table)
    batch = q.shape[1] // plan.query_blocks
    found = np.zeros((batch, plan.query_blocks, plan.key_blocks), int)
    for b, i, j in np.ndindex(found.shape):
        at, kt = b * plan.query_blocks + i, b * plan.key_blocks + j
        run = q[5, at] >= j * 128 and q[2, at] <= k[3, kt] and k[2, kt] <= q[3, at]
        whole = q[4, at] >= j * 128 + 127 and q[2, at] == k[3, kt] and k[2, kt] == q[3, at]
        found[b, i, j] = run * (1 + whole)
    return found


def test_a_causal_prefill_skips_the_upper_triangle():
    ones = jnp.ones((1, 512), jnp.int32)
    plan, _, _ = planned((ones, ones), jnp.arange(512)[None])
    assert (cases(plan)[0] == np.tril(np.full((4, 4), 2), -1) + np.eye(4, dtype=int)).all()
    fetched = [[int(plan.key_block(plan.query_table, 0, i, j)) for j in range(4)] for i in range(4)]
    assert fetched == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]
    fetched = [[int(plan.query_block(plan.key_table, 0, i, j)) for i in range(4)] for j in range(4)]
    assert fetched == [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]


def test_no_visible_block_is_skipped_and_no_mixed_one_is_taken_as_whole():
    rng = np.random.default_rng(0)
    for _ in range(20):
        t, s = 300, 500
        segments = [np.sort(rng.integers(0, 4, (2, size)), axis=1) for size in (t, s)]
        if rng.random() < 0.3:
            segments = [rng.permuted(x, axis=1) for x in segments]
        positions = rng.integers(-1, s, (2, 1)) + np.arange(t) * rng.integers(0, 2)
        plan, some, whole = planned(tuple(map(jnp.asarray, segments)), jnp.asarray(positions))
        found = cases(plan)
        assert (found[some] > 0).all() and not (found[~whole] == 2).any()
        q, k = (np.asarray(x)[:2].reshape(2, 2, -1) for x in (plan.query_table, plan.key_table))
        b, i, j = np.nonzero(found)  # what is computed has been fetched
        assert (q[0, b, i] <= j).all() and (j <= q[1, b, i]).all()
        assert (k[0, b, j] <= i).all() and (i <= k[1, b, j]).all()


def test_block_sizes_waste_little():
    assert blocks._block(600, 512) == 384 and blocks._block(100, 512) == 128 and blocks._block(2150, 1024) == 768
