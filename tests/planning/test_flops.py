"""The counter against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels.attention import KEPT, attention
from spatialreward_jax.planning.flops import Counting, Flops, count_flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_matrix_products_and_convolutions():
    assert count_flops(jnp.matmul, shape(3, 5), shape(5, 7)) == Flops(linear=2 * 3 * 5 * 7)
    assert count_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shape(2, 3, 5), shape(2, 5, 7)).total == 420
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert count_flops(conv, shape(2, 8, 8, 3), shape(3, 3, 3, 5)) == Flops(convolution=2 * (2 * 4 * 4 * 5) * 27)


def test_scans_multiply_and_nest():
    def step(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, w), None), x, length=3)
        return x, None

    outer = lambda x, w: jax.lax.scan(step, x, w)[0]
    assert count_flops(outer, shape(4, 8), shape(5, 8, 8)).linear == 5 * 3 * 2 * 4 * 8 * 8


def test_rematerialised_gradient_without_weight_gradients_is_three_forward_passes():
    """And what nobody reads is not counted: the gradient of a frozen weight, the last output of a recomputation."""

    def loss(x, w):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), x, w)[0].sum()

    x, w = shape(4, 8), shape(5, 8, 8)
    forward = 5 * 2 * 4 * 8 * 8
    assert count_flops(loss, x, w).linear == forward
    assert count_flops(jax.grad(loss), x, w).linear == 3 * forward
    assert count_flops(jax.grad(loss, (0, 1)), x, w).linear == 4 * forward
    assert count_flops(lambda x, w: jax.grad(loss, (0, 1))(x, w)[0], x, w).linear == 3 * forward


def test_branches_are_weighted_and_loops_need_a_number():
    heavy = lambda x: x @ x @ x
    fn = lambda flag, x: jax.lax.cond(flag, heavy, lambda x: x @ x, x)
    one = 2 * 4**3
    assert count_flops(fn, shape(dtype=bool), shape(4, 4)).linear == 2 * one
    assert count_flops(fn, shape(dtype=bool), shape(4, 4), counting=Counting(heavy=0.25)).linear == 1.25 * one
    loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)
    assert count_flops(loop, shape(4, 4), counting=Counting(trips=6)).linear == 6 * one
    with pytest.raises(InputError, match="how often"):
        count_flops(loop, shape(4, 4))
    assert count_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x * 2, x), shape(4)) == Flops()


def test_attention_counts_all_queries_times_all_keys():
    q, k = shape(2, 200, 4, 64), shape(2, 150, 2, 64)
    ids = shape(2, 200, dtype=jnp.int32), shape(2, 150, dtype=jnp.int32)
    product = 2 * 2 * 200 * 150 * 4 * 64
    fn = lambda q, k, v, ids: attention(q, k, v, segments=ids)
    assert count_flops(fn, q, k, k, ids) == Flops(attention=2 * product)
    gradient = lambda *a: jax.grad(lambda *a: fn(*a).sum(), (0, 1, 2))(*a)
    assert count_flops(gradient, q, k, k, ids).attention == (2 + 7) * product
    few = shape(2, 1, 4, 64)
    assert count_flops(attention, few, k, k) == Flops(attention=2 * 2 * 2 * 150 * 4 * 64)


def test_attention_in_a_rematerialised_loop():
    """Layers computed again attend again, unless the outputs are kept."""
    w, q = shape(3, 16, 16), shape(1, 100, 4, 16)
    ids = shape(1, 100, dtype=jnp.int32)

    def loss(w, x, ids, keep):
        body = lambda x, w: (x + attention(x @ w, x, x, segments=(ids, ids)), None)
        policy = jax.checkpoint_policies.save_only_these_names(*keep)
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False, policy=policy), x, w)[0].sum()

    product = 3 * 2 * 100 * 100 * 64
    for keep, products in (((), 2 + 2 + 7), ((KEPT,), 2 + 7)):
        gradient = lambda *a, keep=keep: jax.grad(loss)(*a, keep)
        assert count_flops(gradient, w, q, ids).attention == products * product


def test_agrees_with_xla_where_xla_can_count():
    w = shape(64, 64)
    fn = lambda a, b: jnp.tanh(a @ b) @ b
    compiled = jax.jit(fn).lower(w, w).compile().cost_analysis()["flops"]
    np.testing.assert_allclose(count_flops(fn, w, w).total, compiled, rtol=0.03)  # XLA adds the element-wise work


def test_arithmetic():
    a = Flops(1, 2, 3, 4)
    assert (a + a * 2).total == 30 and (a * 0.5).attention == 1.5
