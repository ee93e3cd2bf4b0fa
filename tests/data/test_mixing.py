"""Batches from buckets and from mixtures of sources."""

import collections

import numpy as np
import pytest

from spatialreward_jax.data.mixing import Mixture, mixed_batches, plan_epoch
from spatialreward_jax.errors import InputError


class Letters:
    def __init__(self, name, keys):
        self.name, self.keys = name, keys

    def __getitem__(self, index):
        return f"{self.name}{index}"


KEYS = [0, 1, 1, 0, 2, 0, 1, 1, 0, 0]


def mixture(count=40, **changes):
    sources = {"a": Letters("a", KEYS), "b": Letters("b", [0] * 4)}
    shares = {"a": 1.0, "b": 3.0}
    return Mixture(**({"sources": sources, "shares": shares, "batch": 2, "count": count, "seed": 3} | changes))


def test_a_batch_holds_one_bucket_and_an_epoch_no_row_twice():
    plan = plan_epoch(KEYS, 2, (0,))
    assert plan.shape == (4, 2) and len(set(plan.ravel())) == 8  # the bucket 2 and one of five zeros are left out
    assert all(len({KEYS[row] for row in batch}) == 1 for batch in plan)
    assert not np.array_equal(plan, plan_epoch(KEYS, 2, (1,)))


def test_shares_are_kept():
    names = collections.Counter(name for _, name, _ in mixture(400))
    assert 260 < names["b"] < 340 and names["a"] + names["b"] == 400


def test_a_share_of_zero_is_never_drawn():
    assert {name for _, name, _ in mixture(50, shares={"a": 2.0, "b": 0.0})} == {"a"}


def test_every_epoch_shows_every_full_bucket():
    rows = collections.Counter(row for _, name, rows in mixture(8, shares={"a": 1.0}) for row in rows)
    assert sum(rows.values()) == 16 and {rows[f"a{n}"] for n in (1, 2, 6, 7)} == {2}  # two epochs of four batches


def test_a_longer_run_begins_with_the_same_batches():
    assert list(mixture(12)) == list(mixture(40))[:12]


def test_position_resumes_exactly():
    load = lambda number, name, rows: (number, name, tuple(rows))
    whole = list(mixed_batches(mixture(12), load, accumulate=2))
    assert len(whole) == 6 and whole[1][0][0] == 2
    first = mixed_batches(mixture(12), load, accumulate=2)
    for _ in range(3):
        next(first)
    second = mixed_batches(mixture(12), load, accumulate=2)
    second.set_state(first.get_state())
    assert list(second) == whole[3:]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shares": {"c": 1.0}}, "not all 0, of a, b"),
        ({"shares": {"a": -1.0, "b": 2.0}}, "at least 0"),
        ({"shares": {"a": 0.0}}, "not all 0"),
        ({"batch": 6}, "no bucket of its 10 rows fills a batch of 6"),
    ],
)
def test_mixtures_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        mixture(**changes)
