"""The held-out evaluation with an editor of given edits: nothing at first, then the exact targets."""

import json
import types

import jax
import numpy as np
import pytest

from spatialreward_jax.data.editworld import render, sample_edit, write_requests
from spatialreward_jax.data.pipeline import EditorSize
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import read_image
from spatialreward_jax.recipes import heldout
from spatialreward_jax.recipes.flow_grpo import FlowGRPO
from spatialreward_jax.recipes.task import History
from spatialreward_jax.reward.backends import GuardsBackend, WeightedReward
from spatialreward_jax.reward.types import Edit


class GivenEditor:
    """What `HeldoutEdits` needs of a task; the state says whether it edits."""

    def __init__(self, index):
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        self.targets = {row["input_images"][0]: index.parent / row["output_image"] for row in rows}
        self.reward = WeightedReward({"guards": GuardsBackend()}, {"guards": 1.0})
        self.size = EditorSize(64 * 64, 2048, multiple=8)
        self.settings = types.SimpleNamespace(sampler_steps=2, prompts=3, group=1)
        self.batches_seen = []

    def encode(self, batch, phase):
        self.batches_seen.append(len(batch))
        return batch

    def sample(self, params, encoded, keys, plan):
        return params, None

    def sample_keys(self, batch, phase, group):
        assert group == 1
        return jax.random.key(0)

    def decode(self, batch, edits):
        if not edits:
            return [sources[0] for sources in batch.sources]
        paths = [self.targets[f"images/{request.images[0].name}"] for request in batch.requests]
        return [read_image(path) for path in paths]

    edits = FlowGRPO.edits


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_requests(tmp_path_factory.mktemp("world") / "heldout", "validation", 5, 0)


def test_the_gain_is_paired_over_requests_and_kept_across_evaluations(index, monkeypatch):
    monkeypatch.setattr(heldout, "CHUNK", 2)
    task = GivenEditor(index)
    evaluator = heldout.HeldoutEdits(task, str(index))
    history = History()
    assert evaluator.gain(history) == {}
    state = lambda edits: types.SimpleNamespace(params=edits)
    first = dict(evaluator(state(False), 0))
    assert task.batches_seen == [2, 2, 2], "the last chunk is filled up"
    last = dict(evaluator(state(True), 1))
    history.eval_first, history.eval_last = ({f"heldout/{n}": v for n, v in x.items()} for x in (first, last))
    gain = evaluator.gain(history)
    assert len(evaluator.before) == len(evaluator.after) == 5
    assert gain["oracle_before"] == pytest.approx(first["oracle"]) and first["oracle"] < 0.7
    assert gain["oracle_after"] == pytest.approx(last["oracle"]) and last["oracle"] > 0.9
    apart = np.subtract(evaluator.after, evaluator.before)
    half = 1.96 * apart.std(ddof=1) / np.sqrt(5)
    assert gain["oracle_gain_ci95"] == pytest.approx([apart.mean() - half, apart.mean() + half])
    assert gain["oracle_gain"] == pytest.approx(apart.mean())
    assert gain["heldout_no_overedit_after"] == last["no_overedit"] and gain["heldout_reward_before"] == 1
    assert gain["heldout_success_before"] == pytest.approx(0, abs=1) and gain["heldout_success_after"] > 22
    assert gain["heldout_no_overedit_before"] == pytest.approx(25, abs=1), "an editor that does nothing keeps all"
    assert first["reward"] == last["reward"] == 1, "the run's own reward is another: guards alone see no difference"
    assert first["invalid_share"] == 0
    assert first["outside_change"] == gain["heldout_outside_change_before"] == 0
    assert gain["heldout_outside_change_after"] < 0.005, "exact targets change nothing but by resized sources"


def test_change_outside_is_what_may_not_change():
    sample = sample_edit("validation", 0, side=64, kinds=("remove",))
    source, (region,) = render(sample.source), sample.regions
    left, top, right, bottom = region.box
    inside, corner = source.copy(), source.copy()
    inside[top:bottom, left:right] = 255 - inside[top:bottom, left:right]
    y, x = (0 if top > 20 else 56), (0 if left > 20 else 56)
    corner[y : y + 8, x : x + 8] = 255 - corner[y : y + 8, x : x + 8]
    edit = lambda image: heldout.changed_outside(Edit(source, image, sample.instruction), sample)
    assert edit(source) == edit(inside) == 0 and edit(corner) > 0.002
    assert edit(corner[::2, ::2]) > 0, "an edit of another size is measured at its own"
    background = sample_edit("validation", 0, side=64, kinds=("background",))
    image = render(background.source)
    assert heldout.changed_outside(Edit(image, image, background.instruction), background) is None


def test_a_run_that_goes_on_knows_what_was_measured(index):
    task, state = GivenEditor(index), lambda edits: types.SimpleNamespace(params=edits)
    whole = heldout.HeldoutEdits(task, str(index))
    dict(whole(state(False), 0)), dict(whole(state(True), 7))
    again = heldout.HeldoutEdits(task, str(index))
    again.restore_record(whole.record())
    assert again.gain(History()) == whole.gain(History())
    late = heldout.HeldoutEdits(task, str(index))  # goes on from a run that measured nothing: no gain to tell
    dict(late(state(True), 7))
    assert late.gain(History())["oracle_after"] > 0.9 and not {"oracle_before", "oracle_gain"} & set(
        late.gain(History())
    )
    late.requests = late.requests[:3]
    with pytest.raises(InputError, match=r"eval\.heldout=3, but the run to resume measured 5"):
        late.restore_record(whole.record())


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ({"guards": 0.0, "oracle": 1.0}, {"oracle"}),
        ({"judge": 0.0, "guards": 0.0, "oracle": 1.0}, {"judge", "oracle"}),
        ({"judge": 0.0, "guards": 1.0}, {"judge", "guards", "oracle"}),
    ],
)
def test_what_counts_and_the_judge_are_asked(index, weights, asked):
    task = GivenEditor(index)
    task.reward = WeightedReward(dict.fromkeys(weights, GuardsBackend()), weights)
    assert heldout.HeldoutEdits(task, str(index)).reward.backends.keys() == asked
