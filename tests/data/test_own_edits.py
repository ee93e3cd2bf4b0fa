"""Edits that a run kept, read as lessons."""

import json

import numpy as np
import pytest

from spatialreward_jax.data.editworld import read_truths, render, write_requests
from spatialreward_jax.data.lessons import Wording, own_lessons
from spatialreward_jax.data.own_edits import OwnEdits
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import read_image
from spatialreward_jax.recipes.kept_edits import keep_edits
from spatialreward_jax.reward.backends import Graded, Rewards
from spatialreward_jax.reward.types import Edit


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two phases over two requests: each gets its exact target and its source."""
    folder = tmp_path_factory.mktemp("run")
    truths = read_truths(write_requests(folder / "data", "train", 2, 0))
    reward = np.array([1.0, 0.25, np.nan, 0.0])
    rewards = Rewards(reward, np.isfinite(reward), None, {"oracle": lambda: [Graded(one) for one in reward]})
    for phase in range(2):
        edits = []
        for sample in truths:
            sources = [render(sample.source)]
            edits += [Edit(sources, image, sample.instruction) for image in (render(sample.target), sources[0])]
        keep_edits(folder / "edits", phase, edits, rewards)
    return folder


def test_every_kept_edit_is_read_with_its_truth(workdir):
    edits, truths = OwnEdits([str(workdir)]), read_truths(workdir / "data/instructions.jsonl")
    assert len(edits) == 8
    for index in range(8):
        observed, source, edited = edits[index]
        sample = truths[index % 4 // 2]
        assert observed.sample.instruction == sample.instruction and edits.side(index) == edited.shape[0]
        np.testing.assert_array_equal(source, render(sample.source))
        np.testing.assert_array_equal(edited, render(sample.source if index % 2 else sample.target))
        assert (observed.scores.success > 20) == (index % 2 == 0)
        assert bool(observed.done) == (index % 2 == 0)


def test_the_files_hold_rewards_and_sources_once(workdir):
    folder = workdir / "edits/00001"
    rows = [json.loads(line) for line in (folder / "instructions.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [1.0, 0.25, None, 0.0]
    assert rows[0]["input_images"] == rows[1]["input_images"] != rows[2]["input_images"]
    assert rows[3]["parts"] == {"oracle/reward": 0.0}
    assert len(list(folder.glob("*.png"))) == 6


def test_they_are_lessons_in_the_judges_two_questions(workdir):
    lessons = own_lessons(OwnEdits([str(workdir)]), Wording(lambda instruction: f"Task: {instruction}", "Looks?"))
    both, quality = lessons["own_consistency"][1], lessons["own_quality"][1]
    assert len(both.images) == 2 and len(quality.images) == 1
    answer = json.loads(both.turns[-1].parts[0])
    assert answer["edit_region"] == [] and "not done, rest kept." in answer["reasoning"]
    assert json.loads(quality.turns[-1].parts[0])["reasoning"] == "sharp and clean."
    np.testing.assert_array_equal(quality.images[0], read_image(workdir / "edits/00000/0001.png"))


def test_a_folder_without_edits_is_refused(tmp_path):
    with pytest.raises(InputError, match="keep_edits=True"):
        OwnEdits([str(tmp_path)])
