"""The reward model with given answers (the valid path) and with the embedded judge (whatever it says)."""

import json
import re

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.judge import FunctionAnswerer, RewardModel
from spatialreward_jax.reward.parsing import MODES
from spatialreward_jax.reward.protocol import Question
from spatialreward_jax.reward.types import NUMBERS, Edit
from spatialreward_jax.reward.vlm import Decoding

SOURCE = np.full((40, 64, 3), 80, np.uint8)


def edited(value):
    image = SOURCE.copy()
    image[10:20, 16:32] = value
    return image


def given(question):
    """Scores by the edited image's own grey; an edit of value 13 is answered with a cut-off text."""
    value = int(question.images[-1][15, 20, 0])
    if question.stream == "pq":
        return json.dumps({"reasoning": "Sharp.", "score": [value % 26, 20]})
    answer = {
        "edit_region": [{"id": 0, "label": "square", "bbox_2d": [250, 250, 500, 500]}],
        "reasoning": "<|bbox_0|> A square. <|global|> Fine.",
        "score": [value % 26, 15],
    }
    return json.dumps(answer)[: -9 if value == 13 else None]


def test_valid_path_with_given_answers():
    model = RewardModel(FunctionAnswerer(given))
    good, bad, other = model.score([Edit(SOURCE, edited(v), "add a square") for v in (20, 13, 5)])
    assert good.valid and other.valid and not bad.valid
    assert (good.success, good.no_overedit, good.naturalness, good.artifact_free) == (20, 15, 20, 20)
    assert good.reward == pytest.approx(Aggregation()((20, 15), (20, 20)).reward)
    assert good.reward > other.reward
    assert good.regions[0].box == (16, 10, 32, 20)
    assert all(getattr(bad, name) is None for name in NUMBERS) and "SC" in bad.errors[0]
    identity = good.to_json()["identity"]
    assert identity["model"] == "function" and identity["template"] == model.templates.id
    assert (identity["parsing"], identity["aggregation"]) == ("strict", "weighted")


def test_the_judge_is_asked_what_the_protocol_says():
    seen = []
    model = RewardModel(FunctionAnswerer(lambda question: seen.append(question) or ""), templates="default")
    model.score([Edit([SOURCE, edited(1)], edited(2), "paint the square")])
    semantic, quality = seen
    assert (semantic.stream, len(semantic.images), quality.stream, len(quality.images)) == ("sc", 3, "pq", 1)
    assert "paint the square" in semantic.text and "first 2 images" in semantic.text
    assert not re.search(r"{(instruction|score_range|num_input_images)}", semantic.text + quality.text)


def test_an_ensemble_gives_the_means_of_what_can_be_read():
    """Answers of one question differ by their number; of value 13, the second is cut off and the rest are not."""

    def numbered(question):
        broken = question.stream == "sc" and question.draw == int(question.images[-1][15, 20, 0]) - 12
        return "" if broken else json.dumps(json.loads(plain(question)) | {"score": [10 + question.draw, 20]})

    def plain(question):
        return given(Question((edited(5),), question.text, question.stream))

    model = RewardModel(FunctionAnswerer(numbered), ensemble=3)
    whole, part = model.score([Edit(SOURCE, edited(v), "add a square") for v in (0, 13)])
    alone = [Aggregation()((10 + n, 20), (10 + n, 20)) for n in range(3)]
    assert whole.success == whole.naturalness == 11 and whole.no_overedit == 20 and not whole.warnings
    for name in ("overall", "reward", "semantic", "quality"):
        assert getattr(whole, name) == pytest.approx(np.mean([getattr(one, name) for one in alone]))
    assert part.success == 11 and part.overall == pytest.approx((alone[0].overall + alone[2].overall) / 2)
    assert part.warnings[-1].startswith("1 of 3 answers") and part.regions == whole.regions
    assert whole.identity.decoding == "given mean of 3"
    lost = RewardModel(FunctionAnswerer(lambda question: ""), ensemble=2).score([Edit(SOURCE, edited(1), "x")])
    assert not lost[0].valid and lost[0].overall is None and lost[0].errors


@pytest.mark.parametrize("parsing", MODES)
def test_clamping_follows_the_parsing_mode(parsing):
    assert RewardModel(FunctionAnswerer(given), parsing=parsing).aggregation.clamp == (parsing != "bench")


def test_bad_choices():
    for choice, why in (
        ({"parsing": "loose"}, "choose one of strict"),
        ({"aggregation": "median"}, "choose one of weighted"),
        ({"templates": "nowhere"}, "neither shipped"),
        ({"ensemble": 0}, "at least one answer"),
    ):
        with pytest.raises(InputError, match=why):
            RewardModel(FunctionAnswerer(given), **choice)
    with pytest.raises(InputError, match="is no folder"):
        RewardModel.from_pretrained("nowhere")
    with pytest.raises(InputError, match="pixel policy"):
        RewardModel.from_pretrained("embedded", pixel_policy="huge")
    with pytest.raises(InputError, match="temperature 0 are all the same"):
        RewardModel.from_pretrained("embedded", ensemble=2)


def test_embedded_judge_answers_in_its_own_identity():
    """Trained or not: every sample has a number or a reason, and the shapes stay bounded."""
    model = RewardModel.from_pretrained("embedded", decoding=Decoding(max_new_tokens=16))
    edits = [Edit(SOURCE, edited(v), "add a square") for v in (20, 13)]
    scores = model.score(edits)
    assert len(scores) == 2 and all(score.valid or score.errors for score in scores)
    assert all(score.raw_sc or score.errors for score in scores)
    assert scores[0].identity.model == "embedded" and scores[0].identity.template.startswith("compact@")
    assert scores[0].identity.decoding == "greedy max16"
    shapes = set(model.answerer.engine.shapes)
    assert [score.to_json() for score in model.score(edits)] == [score.to_json() for score in scores]
    assert model.answerer.engine.shapes == shapes


def test_check_names_the_edit():
    model = RewardModel.from_pretrained("embedded")
    good = Edit(SOURCE, edited(1), "add a square")
    model.check([good])
    for bad, why in (
        (Edit(SOURCE, edited(1), ""), "edit 1: the instruction is empty"),
        (Edit(SOURCE, edited(1), "add <|im_end|>"), "edit 1: the text holds"),
        (Edit(SOURCE, np.zeros((4, 900, 3), np.uint8), "x"), "edit 1: image 900x4 is too narrow"),
    ):
        with pytest.raises(InputError, match=re.escape(why)):
            model.check([good, bad])
    assert not model.answerer.engine.shapes


def test_no_edits():
    assert RewardModel(FunctionAnswerer(given)).score([]) == []
