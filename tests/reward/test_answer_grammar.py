"""The language of the judge's answers, and a judge that is held to it."""

import json
import re

import numpy as np
import pytest

from spatialreward_jax.data import editworld
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import resolve
from spatialreward_jax.reward.answer_grammar import AnswerBounds, AnswerTables, answer_grammar
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.protocol import Question, Reply, read_answers
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.reward.vlm import VLM, Decoding

GRAMMAR, STARTS = answer_grammar()
SC = '{"edit_region": [{"id": 0, "label": "a", "bbox_2d": [1, 2, 30, 40]}, {"id": 1, "label": "b", "bbox_2d": '
SC += '[0, 0, 1000, 999]}], "reasoning": "<|bbox_0|> x. <|bbox_1|> y. <|global|> z.", "score": [25, 0]}'


def accepts(text, stream="sc"):
    return GRAMMAR.accepts(text, STARTS[stream])


def test_answers_of_editworld_and_of_the_official_form(goldens):
    for index in range(60):
        candidate = editworld.random_candidate(editworld.sample_edit("test", index), np.random.default_rng(index))
        pair = editworld.consistency_answer(candidate), editworld.quality_answer(candidate)
        for text, stream in zip(pair, ("sc", "pq")):
            assert accepts(text, stream) and accepts(json.dumps(json.loads(text)), stream)
    official = [c for c in json.loads((goldens / "reward.json").read_text())["cases"] if c["note"] == "well formed"]
    known = [
        c for c in official if json.loads(c["sc_text"])["edit_region"]
    ]  # the others cite a region that is not there
    assert known and all(accepts(case["sc_text"]) for case in known)
    assert all(accepts(case["pq_text"], "pq") for case in official)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"id": 1', '"id": 2'),
        ('"id": 0', '"id": 1'),
        ("30, 40", "1, 40"),
        ("30, 40", "30, 2"),
        ("30, 40", "30, 1001"),
        ("[1, 2", "[01, 2"),
        ("[25, 0]", "[26, 0]"),
        ("[25, 0]", "[25, 0.5]"),
        ("[25, 0]", "[25]"),
        ("bbox_1|> y", "bbox_2|> y"),
        ("<|global|> z.", "z."),
        ("<|global|> z.", "<|global|>"),
        ("<|global|> z.", "<|global|> z. <|global|> z."),
        ('"label": "a"', '"label": ""'),
        ('"label": "a"', '"label": "<|bbox_0|>"'),
        (" z.", " z\n"),
        (" z.", ' "z"'),
        (" z.", " \\u0020"),
        ('"score": ', '"score":'),
        ("]}", "]} "),
    ],
)
def test_other_answers_are_refused(old, new):
    assert accepts(SC)
    head, _, tail = SC.rpartition(old)
    assert head and not accepts(head + new + tail)


def test_other_answers_that_are_allowed():
    for old, new in (
        (" z.", ' \\"z\\" é 漢 🙂 <b> \\\\'),
        ("<|bbox_1|> y", "y"),
        (" z.", " z, <|bbox_0|> too"),
        ("[25, 0]", "[7, 10]"),
    ):
        assert accepts(SC.replace(old, new)), new
    assert accepts('{"edit_region":[],"reasoning":"<|global|>.","score":[0,0]}')
    assert not accepts('{"edit_region":[],"reasoning":"<|bbox_0|> <|global|>.","score":[0,0]}')
    entry = '{{"id":{n},"label":"a","bbox_2d":[1,2,3,4]}}'
    for count in (16, 17):
        found = ",".join(entry.format(n=n) for n in range(count))
        text = f'{{"edit_region":[{found}],"reasoning":"<|bbox_15|> <|global|>.","score":[0,0]}}'
        assert accepts(text) == (count == 16)
    with pytest.raises(InputError, match="regions must lie in"):
        AnswerBounds(regions=100)


@pytest.fixture(scope="module")
def asked(goldens):
    golden = np.load(goldens / "qwen3_vl.npz")
    images = golden["image_0"], golden["image_1"]
    return [Question(images, str(golden["prompt_two"]), "sc"), Question(images[1:], str(golden["prompt_one"]), "pq")]


def test_golden_judge_writes_valid_answers(goldens, asked):
    """Random weights of the golden judge: every answer is readable, and no answer depends on its neighbours."""
    folder = goldens / "spatialreward"
    decoding = Decoding(max_new_tokens=40, constrained=True, score_mode="expected")
    judge = VLM(load_judge(folder), Processor(folder), decoding, model="golden")
    assert judge.decoding == "greedy max40 grammar1 expected"
    replies = judge.answer([asked[0], asked[1], asked[1], asked[0]])
    score = read_answers(replies[0], replies[1], (64, 64))
    assert score.valid and all(reply.complete for reply in replies)
    assert (score.success, score.no_overedit) == replies[0].expected != tuple(json.loads(replies[0].text)["score"])
    assert all(0 <= mean <= 25 for reply in replies for mean in reply.expected)
    for a, b in ((0, 3), (1, 2)):
        assert replies[a].text == replies[b].text and replies[a].expected == pytest.approx(
            replies[b].expected, abs=1e-4
        )
    with pytest.raises(InputError, match="'grounding' has no grammar"):
        judge.check(Question(asked[1].images, "ok", "grounding"))


def test_embedded_judge_has_no_invalid_answer():
    rng = np.random.default_rng(0)
    edits = [Edit(*(rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)), "add a square") for _ in range(3)]
    model = RewardModel.from_pretrained("embedded", decoding=Decoding(max_new_tokens=32), constrained=True)
    scores = model.score(edits)
    assert all(score.valid for score in scores)
    assert scores[0].identity.decoding == "greedy max32 grammar1"


def test_choices_that_cannot_be():
    for decoding, why in (
        (Decoding(score_mode="expected"), "needs constrained"),
        (Decoding(score_mode="mean"), "choose one of answered, expected"),
    ):
        with pytest.raises(InputError, match=why):
            RewardModel.from_pretrained("embedded", decoding=decoding)
    tokenizer = Processor(resolve("embedded", "judge")).tokenizer
    with pytest.raises(InputError, match="the shortest constrained answer takes 13 tokens"):
        AnswerTables.compile(tokenizer, vocab=2048, eos=(2028,), max_new=12, place=lambda tables: tables)


def test_expected_scores_replace_those_of_the_text():
    sc = Reply(SC, expected=(20.5, 3.25))
    pq = Reply('{"reasoning": "ok", "score": [9, 9]}')
    score = read_answers(sc, pq, (10, 10))
    assert (score.success, score.no_overedit, score.naturalness) == (20.5, 3.25, 9)
    assert re.search("25, 0", score.raw_sc)
    broken = read_answers(Reply("no", expected=(1.0, 2.0)), pq, (10, 10))
    assert not broken.valid
    for other in (sc._replace(expected=(np.nan, 3.0)), sc._replace(failure="the net is broken")):
        broken = read_answers(other, pq, (10, 10))
        assert not broken.valid and ("finite" in broken.errors[0] or broken.errors == ("SC: the net is broken",))
