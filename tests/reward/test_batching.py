"""Every question once, every image once, few shapes."""

import random

from spatialreward_jax.reward.batching import LIMITS, Limits, plan, power_of_two


def covered(passes):
    return sorted(q for one in passes for batch in one.batches for q in batch.questions)


def test_a_group_is_one_pass():
    """One source, eight edits: nine images, sixteen questions, two prompt lengths."""
    shown = [s for edit in range(1, 9) for s in ((0, edit), (edit,))]
    passes = plan([500, 300] * 8, shown, [256] * 9, LIMITS)
    assert len(passes) == 1
    assert passes[0].images == tuple(range(9)) and (passes[0].rows, passes[0].slots, passes[0].patches) == (16, 16, 256)
    assert [(batch.rows, batch.length, len(batch.questions)) for batch in passes[0].batches] == [
        (8, 384, 8),
        (8, 512, 8),
    ]
    assert covered(passes) == list(range(16))


def test_random_requests_keep_the_promises():
    rng = random.Random(0)
    limits = Limits(batch=4, patches=1024, images=8, prompt=2048)
    for _ in range(200):
        patches = [rng.choice((4, 64, 100, 900, 5000)) for _ in range(rng.randint(1, 30))]
        shown = [
            tuple(rng.randrange(len(patches)) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 40))
        ]
        lengths = [rng.randint(1, 2048) for _ in shown]
        passes = plan(lengths, shown, patches, limits)
        assert covered(passes) == list(range(len(shown)))
        for one in passes:
            assert len(one.images) <= one.slots == power_of_two(one.slots) and one.slots % one.rows == 0
            assert len(one.images) <= limits.images and one.rows * one.patches <= max(limits.patches, one.patches)
            assert all(patches[image] <= one.patches for image in one.images) and one.patches % 4 == 0
            for batch in one.batches:
                assert 1 <= len(batch.questions) <= batch.rows <= limits.batch
                for question in batch.questions:
                    assert lengths[question] <= batch.length and set(shown[question]) <= set(one.images)


def test_images_are_shared_across_sizes():
    """A small edit of a large source: the edit is encoded once, in the large bucket, for both its questions."""
    passes = plan([100, 50, 60, 30], [(0, 1), (1,), (2, 3), (3,)], [1000, 64, 64, 64], LIMITS)
    assert [(one.images, one.patches) for one in passes] == [((0, 1), 1024), ((2, 3), 64)]
