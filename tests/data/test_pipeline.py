import numpy as np
import pytest

from spatialreward_jax.data import pipeline
from spatialreward_jax.data.requests import EditRequest
from spatialreward_jax.errors import InputError
from spatialreward_jax.io import images

SIZE = pipeline.EditorSize(max_pixels=64 * 64)


@pytest.fixture
def rows(tmp_path):
    made = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        images.write_png(path, np.full((32, 32 + 16 * (index % 2), 3), index, np.uint8))
        made.append(EditRequest(f"edit {index}", (path,), f"edit {index}", key=index, where=f"rows:{index + 1}"))
    return made


def _take(iterator, count):
    return [list(next(iterator).keys) for _ in range(count)]


def test_batches_are_shuffled_by_seed_and_epoch_and_never_cross_an_epoch(rows):
    got = _take(pipeline.batches(rows, 3, seed=0, size=SIZE), 8)
    epochs = [got[i] + got[i + 1] for i in range(0, 8, 2)]
    assert all(len(set(epoch)) == 6 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    assert _take(pipeline.batches(rows, 3, seed=0, size=SIZE), 8) == got
    assert _take(pipeline.batches(rows, 3, seed=1, size=SIZE), 8) != got


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_position_resumes_exactly(rows, stop):
    whole = pipeline.batches(rows, 3, seed=0, size=SIZE)
    _take(whole, stop)
    state = whole.get_state()
    fresh = pipeline.batches(rows, 3, seed=0, size=SIZE, threads=1)
    fresh.set_state(state)
    assert _take(fresh, 4) == _take(whole, 4)


def test_processes_share_every_batch(rows):
    whole = _take(pipeline.batches(rows, 4, seed=0, size=SIZE), 3)
    halves = [_take(pipeline.batches(rows, 4, seed=0, size=SIZE, process=(i, 2)), 3) for i in range(2)]
    assert [a + b for a, b in zip(*halves)] == whole
    half = pipeline.batches(rows, 4, seed=0, size=SIZE, process=(1, 2))
    _take(half, 2)
    one = pipeline.batches(rows, 4, seed=0, size=SIZE)
    one.set_state(half.get_state())
    assert _take(one, 1) == whole[2:]


def test_images_and_sizes(rows):
    batch = next(pipeline.batches(rows, 7, seed=0, size=SIZE))
    assert len(batch) == 7
    for request, (source,), target in zip(batch.requests, batch.sources, batch.target_sizes):
        assert target == source.shape[:2] == (32, 32 + 16 * (request.key % 2)) and (source == request.key).all()


def test_target_size_with_several_sources(rows):
    source = images.read_image(rows[0].images[0])
    request = EditRequest("x", rows[0].images * 2, "x", target_size=(100, 200))
    assert pipeline.EditorSize().target(request, [source] * 2) == (96, 192)
    assert SIZE.target(request, [source] * 2) == (32, 80)
    assert SIZE.target(EditRequest("x", rows[0].images * 2, "x"), [source] * 2) == (64, 64)


def test_wrong_counts(rows):
    with pytest.raises(InputError, match="8 prompts needs as many requests, the data holds 7"):
        pipeline.batches(rows, 8, seed=0, size=SIZE)
    with pytest.raises(InputError, match="5 prompts do not divide over 2 processes"):
        pipeline.batches(rows, 5, seed=0, size=SIZE, process=(0, 2))


def test_an_image_that_vanishes_names_its_row(rows):
    rows[2].images[0].unlink()
    with pytest.raises(InputError, match=r"rows:3: image .*2\.png does not exist"):
        next(pipeline.batches(rows, 7, seed=0, size=SIZE))
