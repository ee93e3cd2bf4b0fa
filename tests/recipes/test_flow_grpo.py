"""The main job's recipe on tiny nets, with given answers of the judge."""

import functools
import importlib.util
import itertools
import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from spatialreward_jax import train
from spatialreward_jax.data.editworld import write_requests
from spatialreward_jax.data.requests import read_requests
from spatialreward_jax.editor import load_nets
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import read_adapter
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models import omnigen2
from spatialreward_jax.recipes.flow_grpo import FlowGRPO, charts_of, make_task
from spatialreward_jax.recipes.grpo_settings import Settings, make_reward
from spatialreward_jax.reporting.journal import NonFiniteError
from spatialreward_jax.reward.backends import GuardsBackend, JudgeBackend, WeightedReward
from spatialreward_jax.reward.judge import FunctionAnswerer, RewardModel

ROOT = pathlib.Path(__file__).parents[2]
GUIDED = {"text_guidance": 4.0, "image_guidance": 2.0}
ONE_LOSS = 1.0
"""Size of one sample's loss; at ratio 1 their mean nearly cancels, so that errors are measured against this."""


def grpo_config(preset="embedded"):
    spec = importlib.util.spec_from_file_location("grpo", ROOT / "configs/grpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)


def tiny_config(goldens, data, **changes):
    config = grpo_config()
    config.update({"editor": str(goldens / "omnigen2"), "prompts": 2, "group": 4, "sampler": {"steps": 4, **GUIDED}})
    config.update({"recipe": "window", "updates_per_phase": 2})
    config.update(
        {"lora": {"rank": 2, "alpha": 4.0}, "data": {"path": str(data)}, "eval": {"prompts": 0, "heldout": 0}}
    )
    config.update(changes)
    return config


def given_answers(verdict):
    """A judge whose n-th SC answer scores `verdict(n)` of 25 (None: unreadable)."""
    number = itertools.count()

    def answer(question):
        value = verdict(next(number)) if question.stream == "sc" else 20.0
        if value is None:
            return "I cannot say."
        reply = {"reasoning": "<|global|> as asked", "score": [value, value]}
        return json.dumps(reply | ({"edit_region": []} if question.stream == "sc" else {}))

    return RewardModel(FunctionAnswerer(answer))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_requests(tmp_path_factory.mktemp("world") / "data", "train", 8, 0)


def make(goldens, data, workdir, verdict, *, mesh=None, dtype="float32", **changes):
    settings = Settings.from_config(tiny_config(goldens, data, dtype=dtype, **changes), workdir)
    nets = load_nets(settings.editor, dtype=dtype, mesh=mesh or make_mesh(devices=jax.devices()[:1]))
    backends = {"judge": JudgeBackend(given_answers(verdict)), "guards": GuardsBackend()}
    reward = WeightedReward(backends, {"judge": 1.0, "guards": 0.0})
    return FlowGRPO(settings, read_requests(settings.data), nets, reward, workdir)


def varied(number):
    return float(number * 7 % 25)


def one_phase(task):
    state = task.init(jax.random.key(0))
    before = jax.device_get(state.params)
    state, metrics = task.step(state, next(task.batches()))
    moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)))
    assert len(metrics.pop("samples").names) == 2
    return state, {k: float(v.value() if hasattr(v, "value") else v) for k, v in metrics.items()}, moved


def test_given_answers_reach_the_parameters_and_the_first_ratios_are_one(goldens, data, tmp_path):
    task = make(goldens, data, tmp_path, lambda n: None if n == 3 else varied(n))
    state, metrics, moved = one_phase(task)
    assert metrics["invalid_share"] == 1 / 8
    assert metrics["update1/grad_norm"] > 0 and metrics["update1/update_norm"] > 0 and moved > 0
    assert task.first_deviation <= 1e-6 and metrics["update1/clip_fraction"] == 0
    assert metrics["update2/ratio_deviation"] > 0, "the second update is off-policy by the first"
    assert {"reward/judge/reward", "reward/guards/reward", "reward/guards/outside_change"} <= metrics.keys()
    assert int(state.step) == 2
    task.export(state)
    spec, adapters = read_adapter(tmp_path / "adapter", omnigen2.ENTRIES, task.nets.transformer.params)
    assert (spec.rank, spec.alpha, set(spec.targets)) == (2, 4.0, set(task.nets.spec.targets))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, adapters, jax.device_get(state.params))))
    assert load_file(tmp_path / "adapter/pytorch_lora_weights.safetensors").keys()


def test_a_phase_keeps_its_edits_where_asked(goldens, data, tmp_path):
    task = make(goldens, data, tmp_path, lambda n: None if n == 3 else varied(n), keep_edits=True)
    _, metrics, _ = one_phase(task)
    kept = read_requests(str(tmp_path / "edits/00000"), outputs=True)
    rows = [json.loads(line) for line in (tmp_path / "edits/00000/instructions.jsonl").read_text().splitlines()]
    assert len(kept) == 8 and len({request.instruction for request in kept}) == 2
    assert [row["reward"] is None for row in rows] == [number == 3 for number in range(8)]
    given = [row["reward"] for row in rows if row["reward"] is not None]
    np.testing.assert_allclose(np.mean(given), metrics["reward"], rtol=1e-6)


def test_edits_that_cannot_be_kept_do_not_end_the_run(goldens, data, tmp_path, capsys):
    (tmp_path / "edits").write_text("a file where the folder should be")
    _, metrics, _ = one_phase(make(goldens, data, tmp_path, varied, keep_edits=True))
    assert metrics["reward"] > 0 and "WARNING: the edits of phase 0 were not kept" in capsys.readouterr().out


def assert_same_update(a, b):
    """Two results of `one_phase` with one update: losses, and gradients to 1e-5 of the largest value of each array."""
    for name in ("update1/loss", "update1/policy_loss", "reward"):
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=1e-5, atol=ONE_LOSS * 1e-6, err_msg=name)
    # After one update, the first moment is the (clipped) gradient times 1 - beta1.
    gradients = [optax.tree_utils.tree_get(state.opt, "mu") for state, *_ in (a, b)]
    for path, wanted in jax.tree.leaves_with_path(gradients[0]):
        other = functools.reduce(lambda tree, key: tree[key.key], path, gradients[1])
        largest = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(wanted, other, rtol=0, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients[0])) > 0


def test_the_learning_rate_falls_where_asked(goldens, data, tmp_path):
    runs, rates = {}, {}
    for schedule in ("constant", "cosine"):
        task = make(goldens, data, tmp_path, varied, schedule=schedule, steps=2)
        state, runs[schedule], _ = one_phase(task)
        _, second_phase = task.step(state, next(task.batches()))
        rates[schedule] = [runs[schedule]["lr"], float(second_phase["lr"])]
    first, second = (
        runs["cosine"][f"update{n}/update_norm"] / runs["constant"][f"update{n}/update_norm"] for n in (1, 2)
    )
    assert first == pytest.approx(1) and second == pytest.approx((1 + 0.5**0.5) / 2), "a quarter of the way down"
    np.testing.assert_allclose([rates["constant"], rates["cosine"]], [[2e-3, 2e-3], [2e-3, 1e-3]], rtol=1e-6)


def test_identical_rewards_teach_nothing(goldens, data, tmp_path):
    _, metrics, _ = one_phase(make(goldens, data, tmp_path, lambda n: 20.0))
    assert metrics["zero_std_share"] == 1
    assert metrics["update1/loss"] == metrics["update1/grad_norm"] == 0


def test_no_valid_answer_gives_no_reward_and_no_gradient(goldens, data, tmp_path):
    _, metrics, _ = one_phase(make(goldens, data, tmp_path, lambda n: None))
    assert metrics["invalid_share"] == 1 and "reward" not in metrics
    assert metrics["update1/grad_norm"] == 0


@pytest.mark.slow
def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_last_good_state(goldens, data, tmp_path):
    sampler = {"steps": 2, "text_guidance": 1.0, "image_guidance": 1.0}
    window = {"window_steps": 1, "window_span": (0.0, 1.0)}
    task = make(goldens, data, tmp_path, varied, updates_per_phase=1, sampler=sampler, **window)
    task.recompute = False  # one program fewer to compile
    sample, calls = task.sample, itertools.count()

    def broken(*args):
        latents, trajectory = sample(*args)
        if next(calls) == 1:
            latents = latents.at[1].set(jnp.nan)
            trajectory = trajectory._replace(latents=trajectory.latents.at[1].set(jnp.nan))
        return latents, trajectory

    task.sample = broken
    with pytest.raises(
        NonFiniteError, match=r"step 2: .*loss is nan.*when sampled: key \d+ \(\S*jsonl:\d+\); this step"
    ):
        train.run(task, train.Settings(steps=3, checkpoint_every=1), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(goldens, data, tmp_path):
    smallest = {"sampler": {"steps": 2, "text_guidance": 1.0, "image_guidance": 1.0}, "updates_per_phase": 1}
    smallest |= {"window_steps": 1, "window_span": (0.0, 1.0)}
    settings = train.Settings(steps=3, checkpoint_every=2)

    def start(workdir, first):
        """first: number of the judge's next answer; a phase asks for eight."""
        task = make(goldens, data, workdir, lambda n: varied(n + first), **smallest)
        task.recompute = False  # one program fewer to compile
        return task

    whole, stopped = start(tmp_path / "whole", 0), start(tmp_path / "parts", 0)
    train.run(whole, settings, tmp_path / "whole")
    step = stopped.step

    def interrupted(state, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    stopped.step = interrupted
    assert train.run(stopped, settings, tmp_path / "parts") is None, "stopped after its first phase"
    assert train.run(start(tmp_path / "parts", 8), settings, tmp_path / "parts")["steps"] == 3
    files = sorted(path.name for path in (tmp_path / "whole/adapter").glob("*.safetensors"))
    assert len(files) == 2
    for name in files:
        a, b = (load_file(tmp_path / run / "adapter" / name) for run in ("whole", "parts"))
        assert a.keys() == b.keys() and any(x.any() for name, x in a.items() if "lora_B" in name)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.slow
def test_one_and_eight_devices_give_the_same_losses_and_gradients(goldens, data, tmp_path):
    changes = {"recipe": "parity", "kl_weight": 0.04, "updates_per_phase": 1}
    one = make(goldens, data, tmp_path, varied, mesh=make_mesh(devices=jax.devices()[:1]), **changes)
    eight = make(goldens, data, tmp_path, varied, mesh=make_mesh(data=4, fsdp=2), **changes)
    assert_same_update(one_phase(one), one_phase(eight))


@pytest.mark.slow
def test_low_precision_falls_back_to_the_training_programs_own_log_probabilities(goldens, data, tmp_path):
    task = make(goldens, data, tmp_path, varied, dtype="bfloat16")
    one_phase(task)
    assert task.first_deviation <= 2e-5
    assert task.record()["recompute"] in (True, False)


@pytest.mark.slow
def test_all_parameters_can_be_trained_against_a_frozen_reference(goldens, data, tmp_path):
    config = {"lora": {"rank": 0}, "kl_weight": 0.04, "kl_form": "sample"}
    task = make(goldens, data, tmp_path, varied, **config)
    state, metrics, moved = one_phase(task)
    assert moved > 0 and metrics["update1/kl"] == 0 and metrics["update2/kl"] > 0
    task.export(state)
    assert (tmp_path / "transformer/diffusion_pytorch_model.safetensors").exists()


@pytest.mark.slow
def test_prompts_sampled_apart_and_micro_batches_change_nothing(goldens, data, tmp_path):
    whole = one_phase(make(goldens, data, tmp_path, varied, updates_per_phase=1))
    cut = {"updates_per_phase": 1, "sample_prompts": 1, "micro": (2, 2)}
    parts = one_phase(make(goldens, data, tmp_path, varied, **cut))
    assert_same_update(whole, parts)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"editor": ""}, r"give --config\.editor"),
        ({"group": 1}, "use at least 2"),
        ({"prompts": 3, "updates_per_phase": 2}, "no multiple of updates_per_phase"),
        ({"micro": (1, 3)}, "do not divide into 3"),
        ({"advantage_std": "all"}, "choose one of group, batch"),
        ({"kl_form": "mean"}, "choose one of sample, reference"),
        ({"dtype": "float23"}, "is no type of numbers"),
        ({"adapter": "somewhere", "lora": {"rank": 0}}, "starts without an adapter"),
        ({"recipe": "best"}, "choose one of parity, window"),
        ({"schedule": "linear"}, "choose one of constant, cosine"),
        ({"sampler": {"sigma": 0.0}}, "stochastic"),
        ({"sampler": {"negative": "none"}}, "choose one of"),
        ({"window_span": (0.0, 1.0)}, "crosses the end of guidance"),
        ({"lr": -1.0}, "both must be above 0"),
        ({"max_grad_norm": 0.0}, "both must be above 0"),
        ({"betas": (1.5, 0.9)}, "at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"advantage_clip": -1.0}, "advantage_clip=-1.0 must be above 0"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 at least 0"),
        ({"prompts": 0}, "prompts=0: use at least 1"),
        ({"sample_prompts": -8}, "sample_prompts=-8: use at least 0"),
        ({"micro": (1, 1, 3)}, "give two numbers"),
        ({"eval": {"edits": 0}}, r"eval\.edits=0"),
        ({"sampler": {"steps": 0}}, r"sampler\.steps=0"),
    ],
)
def test_settings_that_cannot_be_get_one_clear_line(goldens, data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Settings.from_config(tiny_config(goldens, data, **changes), tmp_path)


def test_health_is_charted_for_the_first_and_the_last_update():
    series = lambda updates: {name for chart in charts_of(updates) for name in chart.series.values()}
    assert {"update1/clip_fraction", "update8/clip_fraction"} <= series(8) and "update2/clip_fraction" not in series(8)
    assert "update1/clip_fraction" in series(1)


def test_no_pictures_are_written_for_settings_that_cannot_be(tmp_path):
    config = grpo_config("embedded")
    config.recipe = "best"
    with pytest.raises(InputError, match="choose one of parity, window"):
        Settings.from_config(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_must_be_named(goldens, tmp_path):
    with pytest.raises(InputError, match=r"give --config\.data\.path"):
        Settings.from_config(tiny_config(goldens, ""), tmp_path)


def test_more_sources_than_the_editor_takes_are_refused_at_once(goldens, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[5]["input_images"] *= 6
    crowded = data.with_name("crowded.jsonl")
    crowded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"crowded\.jsonl:6: 6 input_images, use at most 5"):
        make_task(tiny_config(goldens, crowded), make_mesh(), tmp_path)


def test_rewards_need_known_backends_and_a_judge(goldens):
    config, mesh = grpo_config("omnigen2"), make_mesh()
    with pytest.raises(InputError, match=r"give --config\.judge\.model"):
        make_reward(config, mesh, "")
    with config.unlocked():
        config.rewards.taste = 1.0
    with pytest.raises(InputError, match="taste is unknown; choose among judge, guards, oracle"):
        make_reward(config, mesh, "")
    with config.unlocked():
        config.rewards = {"oracle": 1.0}
    with pytest.raises(InputError, match="editworld alone"):
        make_reward(config, mesh, "")


def test_presets_are_complete():
    assert jnp.isclose(grpo_config("omnigen2").lr, 4e-4)
    with pytest.raises(ValueError, match="choose one of embedded, laptop, omnigen2"):
        grpo_config("laptops")
