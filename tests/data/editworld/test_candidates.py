"""Candidates, the scoring rule, answers, rankings: known failures score as written, and monotonically."""

import collections
import json
import re

import numpy as np
import pytest

from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld import artifacts, rule
from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.mer import EDITWORLD


def _candidates(count=60):
    for index in range(count):
        sample = editworld.sample_edit("train", index)
        rng = np.random.default_rng(index)
        for failure in editworld.FAILURES:
            if candidate := editworld.make_candidate(sample, failure, rng):
                yield candidate


CANDIDATES = list(_candidates())


def test_all_failures_occur_and_score_as_named():
    seen = collections.Counter(candidate.failure for candidate in CANDIDATES)
    assert set(seen) == set(editworld.FAILURES)
    for candidate in CANDIDATES:
        scores = candidate.scores
        assert all(0 <= score <= 25 for score in scores)
        semantic, quality = scores[:2], scores[2:]
        if candidate.failure == "perfect":
            assert scores == (25, 25, 25, 25)
        elif candidate.failure == "unchanged":
            assert scores == (0, 25, 25, 25) and candidate.regions == []
        elif candidate.failure in ("wrong_object", "wrong_attribute", "partial", "wrong_place"):
            assert scores.success < 25 and quality == (25, 25)
        elif candidate.failure == "over_edit":
            assert scores.success == 25 and scores.no_overedit < 25
        elif candidate.failure == "artifact":
            assert semantic == (25, 25) and max(quality) < 25
        else:
            assert min(scores) < 25


def test_wrong_objects_keep_the_named_one():
    for candidate in CANDIDATES:
        if candidate.failure == "wrong_object":
            targets = {op.target for op in candidate.sample.ops}
            assert any(op.target not in targets for op in candidate.done)
            assert candidate.scores.no_overedit < 25


def test_doing_one_more_part_never_lowers_success():
    for index in range(80):
        sample = editworld.sample_edit("train", index)
        if len(sample.ops) == 2:
            for done in sample.ops:
                part = rule.score(sample.source, sample.ops, (done,))
                assert 0 < part.success < 25 and part.no_overedit == 25


def test_stronger_flaws_never_score_higher():
    for kind in editworld.FLAWS:
        amounts = np.linspace(0, 1.5, 40) * sum(artifacts.AMOUNTS[kind])
        visible = [rule.visible(kind, amount) for amount in amounts]
        assert visible[0] == 0 and visible[-1] == 1 and (np.diff(visible) >= 0).all()
        quality = np.array([rule.quality_scores({kind: strength, "noise": 0.1}) for strength in visible])
        assert (np.diff(quality, axis=0) <= 0).all()
    harm = [rule.preservation_score(damage) for damage in np.linspace(0, 5, 30)]
    assert harm[0] == 25 and (np.diff(harm) < 0).all()


def test_flaws_change_pictures_by_their_amount():
    picture = editworld.render(editworld.sample_edit("train", 0, side=64).target).astype(np.float32)
    changes = {}
    for kind in editworld.FLAWS:
        for strength in (0.1, 0.5, 1.0):
            out = artifacts.add_artifact(picture, editworld.Artifact(kind, strength), np.random.default_rng(0))
            changes[kind, strength] = float(np.abs(out - picture).mean())
        assert 0 < changes[kind, 0.1] < changes[kind, 0.5] < changes[kind, 1.0]
    with pytest.raises(InputError, match="strength"):
        editworld.Artifact("blur", 0.0)


def test_answers_agree_with_the_candidate():
    for candidate in CANDIDATES:
        answer = json.loads(editworld.consistency_answer(candidate))
        assert [region["id"] for region in answer["edit_region"]] == list(range(len(candidate.regions)))
        for region in answer["edit_region"]:
            x0, y0, x1, y1 = region["bbox_2d"]
            assert 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000
            assert f"<|bbox_{region['id']}|>" in answer["reasoning"]
        assert answer["reasoning"].count("<|bbox_") == len(candidate.regions)
        assert answer["reasoning"].count("<|global|>") == 1
        assert answer["score"] == [round(score) for score in candidate.scores[:2]]
        assert ("not asked" in answer["reasoning"]) <= (candidate.scores.no_overedit < 25)
        quality = json.loads(editworld.quality_answer(candidate))
        assert quality["score"] == [round(score) for score in candidate.scores[2:]]
        assert all(artifact.kind in quality["reasoning"] for artifact in candidate.artifacts)
        assert "edit_region" not in json.loads(editworld.consistency_answer(candidate, boxes=False))
        assert "<|" not in editworld.consistency_answer(candidate, cited=False)


def test_what_was_asked_and_what_was_done_read_the_same():
    """Where all was done and nothing else, every request stands among the regions word for word."""
    for candidate in CANDIDATES:
        reasoning = json.loads(editworld.consistency_answer(candidate))["reasoning"]
        request, *regions = re.split(r"\. <\|[a-z]+(?:_\d)?\|> ", reasoning)
        asked = request.removeprefix("Instruction: ").split("; ")
        told = [region.removesuffix(" as asked") for region in regions if region.endswith(" as asked")]
        assert len(asked) == len(candidate.sample.ops)
        if candidate.failure == "perfect":
            assert told == asked
        if candidate.failure in ("unchanged", "wrong_object", "wrong_attribute", "partial", "wrong_place"):
            assert sorted(told) != sorted(asked)


def test_grounding_answer_names_every_shape():
    scene = editworld.sample_edit("train", 3).source
    answer = json.loads(editworld.grounding_answer(scene))
    assert sorted(item["label"] for item in answer) == sorted(f"{s.color} {s.kind}" for s in scene.shapes)


def test_changes_answer_names_every_changed_place():
    for index in range(40):
        scene = editworld.sample_edit("train", index).source
        ops = editworld.several_ops(scene, np.random.default_rng(index))
        places = [box for op in ops for _, box in editworld.edits.regions(scene, (op,))]
        answer = json.loads(editworld.changes_answer(scene, ops))
        assert sorted(item["bbox_2d"] for item in answer) == sorted(
            list(editworld.box_1000(box, scene.side)) for box in places
        )
        assert 1 <= len(ops) <= 5 and ("gone" in str(answer)) == any(op.kind == "remove" for op in ops)


def test_rankings_are_ordered_and_readable(tmp_path):
    for size in (2, 3, 4):
        for index in range(4):
            rewards = [editworld.exact_reward(c) for c in editworld.ranking("test", index, size)]
            assert len(rewards) == size and (np.diff(rewards) <= -0.06 + 1e-9).all()
    folder = editworld.write_rankings(tmp_path / "bench", "test", 2)
    assert editworld.write_rankings(folder, "test", 2) == folder
    rows = list(EDITWORLD.rows(folder))
    assert sorted(len(row.case.keys) for row in rows) == [2, 2, 3, 3, 4, 4]
    assert all(len(row.case.truth) == len(row.edits) for row in rows)
    with pytest.raises(InputError, match="want one of"):
        editworld.ranking("test", 0, 5)


def test_unknown_failure():
    with pytest.raises(InputError, match="failure 'typo'"):
        editworld.make_candidate(editworld.sample_edit("train", 0), "typo", np.random.default_rng(0))
