"""Supervised training of a tiny judge: what is trained, resuming, evaluation, and what comes out."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from spatialreward_jax import train
from spatialreward_jax.data.editworld import grounding_answer, sample_edit
from spatialreward_jax.data.lessons import LESSONS
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.recipes.judge_evaluation import read_grounding
from spatialreward_jax.recipes.reward_settings import Settings
from spatialreward_jax.recipes.reward_sft import make_task
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import load_judge

ROOT = pathlib.Path(__file__).parents[2]
ONE = make_mesh(devices=jax.devices()[:1])


def sft_config(preset="embedded", **changes):
    spec = importlib.util.spec_from_file_location("reward_sft", ROOT / "configs/reward_sft.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset)
    config.update(changes)
    return config


def tiny_config(goldens, **changes):
    world = {"edits": 4, "candidates": 1}
    tiny = {"judge": str(goldens / "spatialreward"), "scratch": False, "steps": 4, "batch": 2}
    tiny |= {"warmup": 0, "muon_lr": 0.0}
    tiny |= {"data": {"editworld": world, "threads": 1}, "eval": {"batches": 0, "edits": 0, "grounding": 0}}
    return sft_config(**(tiny | {"export_dtype": "float32"} | changes))


def run(task, workdir, steps):
    settings = train.Settings(steps, checkpoint_every=2)
    return train.run(task, settings, workdir, command="again")


def write_chats(folder, answers=("0", "1", "2", "3")):
    write_png(folder / "a.png", np.full((64, 64, 3), 90, np.uint8))
    ask = {"role": "user", "content": "<image>Looks?"}
    rows = [{"messages": [ask, {"role": "assistant", "content": text}], "images": ["a.png"]} for text in answers]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def lora_task(goldens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    data = {"path": write_chats(folder), "threads": 1} | {"heldout": str(folder / "rows.jsonl")}
    lora = {"rank": 2, "alpha": 4.0, "dropout": 0.1}
    return make_task(tiny_config(goldens, lora=lora, data=data, eval={"batches": 1}), ONE, folder)


@pytest.mark.slow
def test_lora_trains_adapters_alone_and_comes_back(lora_task):
    task = lora_task
    before = jax.device_get(task.net.base)
    state = task.init(None)
    assert set(state.params) == {"adapters"}
    state, metrics = task.step(state, next(task.batches()))
    assert float(metrics["grad_norm"]) > 0
    assert metrics["loss"].count == metrics["token_accuracy"].count == 4  # two answers of a digit and the end
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), task.net.adapters, state.params["adapters"])
    for name, moves in (("attn.q", moved["blocks"]["attn"]["q"]), ("mlp.down", moved["blocks"]["mlp"]["down"])):
        assert moves["lora"]["b"] > 5e-4, name
        assert moves["lora"]["a"] < 1e-4, f"{name}: with B = 0, A has no gradient, only weight decay"
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(task.net.base))
    task.export(state)
    again = load_judge(task.net.folder, adapter=task.workdir / "adapter", mesh=ONE)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params["adapters"]), again.adapters)


@pytest.mark.slow
def test_an_adapter_to_start_from_keeps_its_rank_and_scale(lora_task, goldens, tmp_path):
    lora_task.export(lora_task.init(None))
    data = {"path": write_chats(tmp_path), "threads": 1}
    lora = {"rank": 4, "alpha": 16.0, "targets": ("q_proj",)}  # of a new adapter, which this is not
    config = tiny_config(goldens, lora=lora, data=data, adapter=str(lora_task.workdir / "adapter"))
    task = make_task(config, ONE, tmp_path)
    task.export(task.init(None))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / file).read_bytes() == (lora_task.workdir / "adapter" / file).read_bytes(), file


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_last_bit(lora_task, tmp_path):
    """Dropout, the mixture, the learning rate and the moments go on where they were."""
    final = []
    for workdir, stops in ((tmp_path / "whole", (4,)), (tmp_path / "parts", (2, 4))):
        for steps in stops:
            run(lora_task, workdir, steps)
        files = sorted((lora_task.workdir / "adapter").glob("*.safetensors"))
        final.append([file.read_bytes() for file in files])
    assert final[0] == final[1]


@pytest.mark.slow
def test_heldout_answers_are_measured_without_dropout(lora_task):
    evaluate = lora_task.evaluators["heldout"]
    first, second = (dict(evaluate(lora_task.init(None), 0)) for _ in range(2))
    assert first == second and first["rows/loss"] > 0 and 0 <= first["rows/token_accuracy"] <= 1


@pytest.mark.slow
def test_all_parameters_from_a_chat_file_to_a_judge_that_loads(goldens, tmp_path):
    config = tiny_config(goldens, data={"path": write_chats(tmp_path)}, scratch=True, lr=3e-3, steps=8)
    task = make_task(config, ONE, tmp_path)
    start = jax.device_get(task.net.base)
    summary = run(task, tmp_path, 8)
    assert summary["loss_last"] < summary["loss_first"] - 0.5
    model = RewardModel.from_pretrained(tmp_path / "judge")
    assert model.templates.name == "compact" and model.answerer.decoding.endswith("max128")
    again = load_judge(tmp_path / "judge", mesh=ONE).base
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, jax.device_get(again))
    assert moved["vision"]["patch"]["kernel"] and moved["vision"]["deep_mergers"]["up"]["kernel"]
    assert moved["embed"]["table"] and moved["head"]["table"] and moved["blocks"]["attn"]["q"]["kernel"]


@pytest.mark.slow
def test_editworld_lessons_have_curves_of_their_own(goldens, tmp_path):
    task = make_task(tiny_config(goldens, accumulate=2), ONE, tmp_path)
    state, metrics = task.step(task.init(None), next(task.batches()))
    lessons = {part.name for part in next(task.batches())}
    named = {name.split("/")[0] for name in metrics if "/" in name}
    assert named == (lessons if len(lessons) == 1 else set()) and int(state.step) == 1


@pytest.mark.slow
def test_verdicts_by_real_decoding(goldens, tmp_path):
    config = tiny_config(goldens, eval={"edits": 1, "grounding": 2, "batches": 0}, max_new_tokens=4)
    task = make_task(config, ONE, tmp_path)
    found = dict(task.evaluators["judge"](task.init(None), 0))
    assert found["verdicts"].ndim == 3
    assert found["valid"] == found["region_iou"] == found["pairwise_accuracy"] == found["grounding_readable"] == 0


def test_grounding_answers_are_read():
    scene = sample_edit("validation", 0).source
    assert len(read_grounding(grounding_answer(scene))) == len(scene.shapes)
    assert read_grounding('[{"label": "a", "bbox_2d": [1, 2, 3]}]') is None
    assert read_grounding("[{") is read_grounding("7") is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"judge": ""}, r"give --config\.judge"),
        ({"data": {"path": ""}}, r"give --config\.data\.path"),
        ({"batch": 0}, "at least 1"),
        ({"export_dtype": "bf16"}, "is no type of numbers"),
        ({"scratch": True, "lora": {"rank": 2}}, "scratch trains all parameters"),
        ({"templates": "none"}, "neither shipped"),
        ({"data": {"editworld": {"boxes": False, "cited": True}}}, "cites boxes"),
        ({"lr": 0.0}, "both must be above 0"),
        ({"data": {"editworld": {"failures": {"perfect": -1.0}}}}, "weights of at least 0, not all 0, to perfect"),
        ({"data": {"editworld": {"own_edits": ("runs/first",)}}}, "own_consistency and own_quality .* go together"),
        ({"data": {"editworld": {"mixture": {"own_quality": 0.1}}}}, "own_consistency and own_quality .* go together"),
    ],
)
def test_settings_that_cannot_be_get_one_clear_line(goldens, changes, message):
    with pytest.raises(InputError, match=message):
        Settings.from_config(tiny_config(goldens, **changes))


def test_a_mixture_of_nothing_is_refused(goldens, tmp_path):
    config = tiny_config(goldens, data={"editworld": {"mixture": dict.fromkeys(LESSONS, 0.0)}})
    with pytest.raises(InputError, match="not all 0"):
        make_task(config, ONE, tmp_path)


def test_chats_without_images_or_too_long_are_refused(goldens, tmp_path):
    write_png(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    messages = [{"role": "user", "content": "Looks?"}, {"role": "assistant", "content": "Fine."}]
    for images, message in (([], "shows no image"), (["a.png"], "more than data.max_tokens=8")):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages, "images": images}))
        config = tiny_config(goldens, data={"path": str(tmp_path / "rows.jsonl"), "max_tokens": 8})
        with pytest.raises(InputError, match=message):
            make_task(config, ONE, tmp_path)


def test_published_hyperparameters():
    config = sft_config("published")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (32, 64.0, 0.05)
    assert (config.lr, config.schedule, config.warmup, config.data.max_tokens) == (1e-4, "cosine", 0.1, 8192)
    stages = "embedded, perception, verdicts, own_edits, judged_edits_brief, judged_edits"
    with pytest.raises(ValueError, match=f"choose one of {stages}, published"):
        sft_config("laptop")
