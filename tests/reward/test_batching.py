"""Every question once, every image once, every beginning once, few shapes."""

import dataclasses
import random

from spatialreward_jax.generate import bucket
from spatialreward_jax.reward.batching import LIMITS, SPREAD, Length, Limits, plan, power_of_two


def covered(passes):
    return sorted(q for one in passes for run in one.runs for part in run.parts for q in part.questions)


def whole(*lengths):
    return [Length(length) for length in lengths]


def test_a_group_is_one_run():
    """One source, eight edits: nine images, sixteen questions, whose SC prompts all begin with the source."""
    shown = [s for edit in range(1, 9) for s in ((0, edit), (edit,))]
    lengths = [length for edit in range(8) for length in (Length(500, 300, "source"), Length(300, 5, "words"))]
    (one,) = plan(lengths, shown, [256] * 9, LIMITS)
    assert one.images == tuple(range(9)) and (one.rows, one.slots, one.patches) == (16, 16, 256)
    (run,) = one.runs
    assert (run.rows, run.length) == (16, 512)
    edits, pictures = run.parts
    assert edits.questions == tuple(range(0, 16, 2)) and edits.length == 224 and edits.which == (0,) * 8
    assert (edits.beginnings.questions, edits.beginnings.rows, edits.beginnings.length) == ((0,), 1, 320)
    assert pictures.questions == tuple(range(1, 16, 2)) and pictures.length == 320 and pictures.beginnings is None
    (alone,) = plan(lengths, shown, [256] * 9, dataclasses.replace(LIMITS, beginnings=0))
    assert [(part.length, part.beginnings) for part in alone.runs[0].parts] == [(512, None), (320, None)]


def test_beginnings_are_shared_where_that_reads_fewer_tokens():
    shown = [(0,)] * 7
    parts = lambda lengths: plan(lengths, shown[: len(lengths)], [64], LIMITS)[0].runs[0].parts
    for lengths in (
        [Length(190, 60, "a"), Length(190, 60, "b")],  # nothing in common
        [Length(190, 60, "a"), Length(190, 60, "a")],  # 2 * (192 - 160) saved, 64 read
        [Length(66, 3, "a"), Length(66, 3, "a")][:1],  # alone
    ):
        assert all(part.beginnings is None for part in parts(lengths))
    (two,) = parts([Length(190, 70, name) for name in "abab"])
    assert two.beginnings.questions == (0, 1) and two.which == (0, 0, 1, 1) and two.questions == (0, 2, 1, 3)
    mixed = parts([Length(190, 70, "a")] * 2 + [Length(500, 200, "b")] * 3 + whole(300, 126))
    assert [(part.beginnings and part.beginnings.length, part.length) for part in mixed] == [
        (80, 128),
        (224, 320),
        (None, 320),
        (None, 128),
    ]


def test_a_long_prompt_does_not_make_room_in_the_slots_of_short_ones():
    passes = plan(whole(5000, 100, 4000, 120, 900), [(0,)] * 5, [64], LIMITS)
    runs = [([q for part in run.parts for q in part.questions], run.length) for run in passes[0].runs]
    assert runs == [([0, 2], 5120), ([4], 1024), ([3, 1], 128)]


def test_random_requests_keep_the_promises():
    rng = random.Random(0)
    limits = Limits(batch=4, patches=1024, images=8, prompt=2048, tokens=3000, beginnings=2)
    shared = dealt = 0
    for _ in range(200):
        patches = [rng.choice((4, 64, 100, 900, 5000)) for _ in range(rng.randint(1, 30))]
        shown = [
            tuple(rng.randrange(len(patches)) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 40))
        ]
        begins = {key: rng.randrange(0, 700) for key in "abc"}
        lengths = [
            Length(begins[key] + rng.randint(1, 1300), begins[key], key) for key in rng.choices("abc", k=len(shown))
        ]
        lanes = rng.randint(1, 3)
        passes = plan(lengths, shown, patches, limits, lanes=lanes)
        assert covered(passes) == list(range(len(shown)))
        dealt += sum(len(one.runs) for one in passes) - sum(
            len(one.runs) for one in plan(lengths, shown, patches, limits)
        )
        for one in passes:
            assert len(one.images) <= one.slots == power_of_two(one.slots) and one.slots % one.rows == 0
            assert len(one.images) <= limits.images and one.rows * one.patches <= max(limits.patches, one.patches)
            assert all(patches[image] <= one.patches for image in one.images) and one.patches % 4 == 0
            for run in one.runs:
                inside = [q for part in run.parts for q in part.questions]
                assert 1 <= run.rows <= limits.batch and run.rows <= power_of_two(len(inside))
                assert max(lengths[q].whole for q in inside) <= SPREAD * min(lengths[q].whole for q in inside)
                for part in run.parts:
                    behind = part.beginnings.length if part.beginnings else 0
                    assert part.rows == power_of_two(part.rows) <= limits.batch
                    assert part.rows == 1 or part.rows * (part.length + behind) <= limits.tokens
                    for place, question in enumerate(part.questions):
                        length = lengths[question]
                        assert length.whole <= run.length and set(shown[question]) <= set(one.images)
                        assert length.whole - (length.begin if behind else 0) <= part.length
                        if behind:
                            source = part.beginnings.questions[part.which[place]]
                            assert lengths[source].key == length.key and length.begin <= behind
                    if behind:
                        shared += 1
                        assert len(part.beginnings.questions) <= part.beginnings.rows <= limits.beginnings
                _check_saving(run, lengths)
    assert shared > 50 and dealt > 50


def _check_saving(run, lengths):
    read = sum(len(part.questions) * part.length for part in run.parts)
    tables = {id(part.beginnings): part.beginnings for part in run.parts if part.beginnings}
    read += sum(len(table.questions) * table.length for table in tables.values())
    assert read <= sum(bucket(lengths[q].whole, parts=4) for part in run.parts for q in part.questions)


def test_what_fills_the_slots_of_two_lanes_is_dealt_to_them():
    """The questions about an edit's own source stay together; those that all edits share begin alike as well."""
    shown = [s for edit in range(16) for s in ((16 + edit // 4, edit), (edit,))]
    lengths = [length for edit in range(16) for length in (Length(500, 300, edit // 4), Length(300, 5, "words"))]
    (one,) = plan(lengths, shown, [256] * 20, LIMITS, lanes=2)
    shares = [sorted(q for part in run.parts for q in part.questions) for run in one.runs]
    assert [len(share) for share in shares] == [16, 16] and {run.length for run in one.runs} == {512}
    for edits in (range(0, 32, 2), range(1, 32, 2)):
        assert [len(set(edits) & set(share)) for share in shares] == [8, 8]
    assert all(len({q // 8 for q in share if q % 2 == 0}) == 2 for share in shares)
    (few,) = plan(lengths[:30], shown[:30], [256] * 20, LIMITS, lanes=2)
    assert len(few.runs) == 1


def test_images_are_shared_across_sizes():
    """A small edit of a large source: the edit is encoded once, in the large bucket, for both its questions."""
    passes = plan(whole(100, 50, 60, 30), [(0, 1), (1,), (2, 3), (3,)], [1000, 64, 64, 64], LIMITS)
    assert [(one.images, one.patches) for one in passes] == [((0, 1), 1024), ((2, 3), 64)]


def test_edits_whose_sizes_take_turns_make_one_pass_each():
    """As EditWorld's do: passes that ended with each change of size would be many and small, in as many shapes."""
    shown = [s for edit in range(32) for s in ((3 * edit, 3 * edit + 1), (3 * edit, 3 * edit + 2))]
    patches = [144 if edit % 2 else 64 for edit in range(32) for _ in range(3)]
    lengths = [Length(80 + edit % 3, 30, edit) for edit in range(32) for _ in range(2)]
    passes = plan(lengths, shown, patches, LIMITS)
    found = [(one.patches, one.slots, len(one.images), len(one.runs)) for one in passes]
    assert found == [(144, 64, 48, 1), (64, 64, 48, 1)]
    assert covered(passes) == list(range(64))


def test_the_last_beginnings_are_read_by_the_program_of_the_first():
    lengths = [Length(190, 70, name) for name in range(11) for _ in range(2)]
    (run,) = plan(lengths, [(0,)] * 22, [64], LIMITS)[0].runs
    tables = {part.beginnings for part in run.parts}
    assert sorted((len(table.questions), table.rows) for table in tables) == [(3, 8), (8, 8)]
