import numpy as np
import pytest

from spatialreward_jax.data import buckets
from spatialreward_jax.errors import InputError


def test_lengths():
    assert buckets.Buckets.linear(64, 200).lengths == (64, 128, 192, 256)
    lengths = buckets.Buckets((64, 128, 256, 512, 888))
    assert [lengths.fit(n) for n in (1, 64, 65, 888)] == [64, 64, 128, 888]
    with pytest.raises(InputError, match="prompt of length 889 does not fit: the longest bucket is 888"):
        lengths.fit(889, "prompt")
    with pytest.raises(InputError, match="rising"):
        buckets.Buckets((4, 2))


def test_grouping_keeps_order():
    assert buckets.group_by_shape([(2, 3), (1, 1), (2, 3)]) == {(2, 3): [0, 2], (1, 1): [1]}


def test_padding():
    out, mask = buckets.pad_rows([np.ones((2, 3)), np.ones((4, 3))], 5, fill=-1)
    assert out.shape == (2, 5, 3) and mask.sum(1).tolist() == [2, 4]
    assert (out[~mask] == -1).all() and (out[mask] == 1).all()
    assert buckets.pad_batch([np.zeros(2), np.ones(2)], 4).tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
    with pytest.raises(InputError, match="does not fit"):
        buckets.pad_rows([np.ones(6)], 5)
    with pytest.raises(InputError, match="do not fit"):
        buckets.pad_batch([], 4)
