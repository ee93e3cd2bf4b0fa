"""Questions, and answers becoming scores: never a number where an answer cannot be read."""

import json
import random

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.protocol import questions, read_answers, read_edits
from spatialreward_jax.reward.templates import load_templates
from spatialreward_jax.reward.types import NUMBERS, Edit, Identity, Score

SIZE = (200, 100)  # height, width


def sc(regions=((0, "hat", (100, 100, 500, 500)),), score=(20, 10), reasoning="<|bbox_0|> A hat. <|global|> Fine."):
    entries = [{"id": i, "label": label, "bbox_2d": list(box)} for i, label, box in regions]
    return json.dumps({"edit_region": entries, "reasoning": reasoning, "score": list(score)})


def pq(score=(15, 5)):
    return json.dumps({"reasoning": "Sharp.", "score": list(score)})


def test_valid_score():
    identity = Identity("m", "r", "t", "eval", "strict", "weighted", "greedy")
    score = read_answers(sc(), pq(), SIZE, identity=identity)
    assert score.valid and score.errors == () and score.warnings == ()
    assert score.overall == pytest.approx(6.4**0.8 * 4.0**0.2) and score.reward == score.overall / 10
    assert (score.success, score.no_overedit, score.naturalness, score.artifact_free) == (20, 10, 15, 5)
    assert score.regions[0].box == (10, 20, 50, 100)  # x by the width, y by the height
    record = json.loads(json.dumps(score.to_json()))
    assert record["regions"][0]["bbox_2d"] == [100, 100, 500, 500]
    assert record["identity"]["template"] == "t" and record["raw_pq"] == pq()


@pytest.mark.parametrize("parsing", ["strict", "server", "bench"])
@pytest.mark.parametrize("kind", ["weighted", "min", "mean"])
def test_all_modes_agree_on_a_well_formed_answer(parsing, kind):
    expected = Aggregation(kind)((20, 10), (15, 5)).overall
    score = read_answers(sc(), pq(), SIZE, parsing=parsing, aggregation=Aggregation(kind))
    assert score.valid and score.overall == pytest.approx(expected)


@pytest.mark.parametrize(
    ("semantic", "quality", "named"),
    [(sc()[:-9], pq(), ["SC"]), (sc(), "", ["PQ"]), ("?", pq(score=(1, 26)), ["SC", "PQ"])],
)
def test_invalid_carries_no_number(semantic, quality, named):
    score = read_answers(semantic, quality, SIZE)
    assert not score.valid and all(getattr(score, name) is None for name in NUMBERS)
    assert [error.split(":")[0] for error in score.errors] == named
    assert json.loads(json.dumps(score.to_json()))["reward"] is None
    assert score.raw_sc == semantic and score.raw_pq == quality


def test_an_invalid_score_counts_as_no_number():
    """An invalid score has no number, and none can be given to it."""
    for number in (0.0, 12.5, float("nan")):
        with pytest.raises(ValueError, match="carries no number"):
            Score(valid=False, reward=number, errors=("SC: cut off",))
        with pytest.raises(ValueError, match="finite"):
            Score(valid=True, reward=number)
    with pytest.raises(ValueError, match="say why"):
        Score(valid=False)
    bad = read_answers("", pq(), SIZE)
    assert not bad.valid and bad.reward is None


def test_made_up_numbers_are_counted():
    """Where the official rules put 12.5 for what an answer lacks, the score says for how many of the four."""
    for parsing, made_up in (("server", 3), ("bench", 2)):
        score = read_answers(sc(score=(7,)), "no", SIZE, parsing=parsing)
        assert score.valid and score.neutral == made_up == score.to_json()["neutral"]
        assert read_answers(sc(score=(12.5, 12.5)), pq((12.5, 12.5)), SIZE, parsing=parsing).neutral == 0
    assert read_answers(sc(), "no", SIZE).neutral == 0  # strict: no number at all


def test_boxes_are_ordered_clipped_and_flagged():
    boxes = (
        (0, "a", (500, 500, 100, 600)),
        (1, "b", (-50, 0, 1200, 10)),
        (2, "c", (5, 5, 5, 9)),
        (3, "d", (0, 0, 1000, 1000)),
    )
    regions = read_answers(sc(boxes), pq(), SIZE).regions
    assert [r.flags for r in regions] == [("disordered",), ("out of range",), ("empty",), ()]
    assert regions[0].box == (10, 100, 50, 120) and regions[1].box == (0, 0, 100, 2)
    assert regions[0].bbox_2d == (500, 500, 100, 600)  # as answered
    assert regions[3].box == (0, 0, 100, 200)


def test_oddities_are_told():
    score = read_answers(sc(reasoning="<|bbox_7|> Something."), pq(), SIZE)
    assert score.warnings == (
        "the reasoning cites region 7, which is not in edit_region",
        "region 0 is not cited in the reasoning",
    )


def test_no_real_overall_is_invalid():
    score = read_answers(sc(score=(-3, 5)), pq(), SIZE, parsing="server", aggregation=Aggregation("min"))
    assert not score.valid and "negative" in score.errors[0]


def test_bench_does_not_clamp():
    assert read_answers(sc(score=(40, 40)), pq((40, 40)), SIZE, parsing="bench").overall == pytest.approx(16)
    assert read_answers(sc(score=(40, 40)), pq((40, 40)), SIZE, parsing="server").overall == pytest.approx(10)


def test_questions():
    image = np.zeros((32, 32, 3), np.uint8)
    edit = read_edits([Edit([image, image + 1], image + 2, "merge them")])[0]
    semantic, quality = questions(edit, load_templates("default"))
    assert [int(i.max()) for i in semantic.images] == [0, 1, 2] and [int(i.max()) for i in quality.images] == [2]
    assert "merge them" in semantic.text and "merge them" not in quality.text


def test_bad_edits():
    image = np.zeros((32, 32, 3), np.uint8)
    for edit, why in (
        (Edit(image, image, "  "), "edit 0: the instruction is empty"),
        (Edit([], image, "x"), "edit 0: no source"),
        (Edit(image, "nowhere.png", "x"), "edit 0: .*nowhere.png"),
        (Edit(b"no image", image, "x"), "edit 0: "),
    ):
        with pytest.raises(InputError, match=why):
            read_edits([edit])


def test_one_file_is_read_once():
    image = np.zeros((32, 32, 3), np.uint8)
    read = read_edits([Edit(image, image, "x"), Edit(image, image, "y")])
    assert read[0].sources[0] is read[1].sources[0]


def test_random_bytes_never_crash():
    rng = random.Random(1)
    for _ in range(2_000):
        text = "".join(chr(rng.randrange(0x20, 0x2FF)) for _ in range(rng.randrange(60)))
        for parsing in ("strict", "server", "bench"):
            score = read_answers("{" + text + "}", pq(), SIZE, parsing=parsing)
            assert score.valid or score.reward is None
