"""The program `plan`: settings, errors, its table, TFLOP per image, and a real compilation of small nets."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from spatialreward_jax import plan
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import ASSETS
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.planning import programs, report
from spatialreward_jax.planning.inputs import Request
from spatialreward_jax.planning.measure import per_chip, roofline
from spatialreward_jax.planning.nets import PUBLISHED, editor_nets, folder_of, judge_net
from spatialreward_jax.planning.recipe_cost import guided_share, of_recipe
from spatialreward_jax.planning.topology import GIB, Topology

ROOT = pathlib.Path(__file__).parents[2]


def config_of(preset="omnigen2"):
    spec = importlib.util.spec_from_file_location("grpo_config", ROOT / "configs" / "grpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)


def published(name, goldens):
    return json.loads((goldens / "published" / f"{name}.json").read_text())


def test_published_sizes_have_the_published_parameters(goldens):
    mesh = make_mesh(2, 4, 1)
    nets = editor_nets(PUBLISHED / "editor", mesh, dtype="bfloat16", spec=plan.settings_of(config_of()).lora)
    judge = judge_net(PUBLISHED / "judge", mesh, dtype="bfloat16")
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(nets.transformer.params) == published("omnigen2_transformer", goldens)["parameters"]
    assert count(nets.vae.params) == published("flux_vae", goldens)["parameters"]
    assert count(judge.base) == published("qwen3_vl_8b", goldens)["parameters"]
    assert round(count(nets.adapters) / 1e6, 1) == 20.4
    assert per_chip(judge.base) < 2 * count(judge.base) / 4 * 1.01  # split over four chips


def test_the_judge_is_planned_as_the_run_lays_it_out():
    """Quantised where the config says so, and with weights that stay where they are, beside an editor split by fsdp."""
    config, mesh = config_of(), make_mesh(1, 8, 1)
    run = plan.run_of(config, mesh)
    config.judge.quantize = "int8"
    small = plan.run_of(config, mesh)
    assert small.judge.base["blocks"]["mlp"]["up"]["kernel"].dtype == "int8"
    assert 0.5 < per_chip(small.judge.base) / per_chip(run.judge.base) < 0.6
    assert dict(run.nets.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(run.judge.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 8}
    counts, twice = (programs._judge(dataclasses.replace(run, ensemble=n))[2] for n in (1, 2))
    assert 1.5 * counts["decode"] < twice["decode"] <= 2 * counts["decode"], "an ensemble fills its last runs better"


def test_mesh_and_settings():
    topology = Topology.parse("v5e:4x8")
    assert plan.sizes_of("", topology) == (4, 8, 1) and plan.sizes_of("2,8,2", topology) == (2, 8, 2)
    for name, sizes in (("v6e:4x4", (2, 8, 1)), ("v6e:2x4", (2, 4, 1)), ("v6e:1x1", (1, 1, 1))):
        assert plan.sizes_of("", Topology.parse(name)) == sizes
    for wrong, message in (("2,8,1", "32 chips"), ("2,8", "data,fsdp,tensor"), ("a,b,c", "data,fsdp,tensor")):
        with pytest.raises(InputError, match=message):
            plan.sizes_of(wrong, topology)
    settings = plan.settings_of(config_of())
    assert guided_share(of_recipe(settings, "parity")) == 13 / 20
    assert guided_share(of_recipe(settings, "window")) == 1 and of_recipe(settings, "window").kl_weight == 0
    other = config_of()
    other.task = "reward_sft"
    with pytest.raises(InputError, match="flow_grpo"):
        plan.settings_of(other)


def test_folders(tmp_path):
    assert folder_of("", "judge") == folder_of("published", "judge") == PUBLISHED / "judge"
    assert folder_of(str(tmp_path), "judge") == tmp_path
    with pytest.raises(InputError, match="no folder"):
        folder_of("nowhere", "judge")
    with pytest.raises(InputError, match=r"config\.json"):
        judge_net(tmp_path, make_mesh(), dtype="")


def test_request_lengths():
    nets = editor_nets(PUBLISHED / "editor", make_mesh(), dtype="", spec=None, layers=1)
    assert Request().tokens(nets) == 1024 and Request().text_tokens() == (128, 64)
    assert Request(padded=False).text_tokens() == (100, 20) and nets.adapters is None


def row(name, total, **more):
    hbm = {"total": total * GIB, "capacity": 16 * GIB, "weights": GIB, "temporaries": 2 * GIB, "beside": 0}
    made = {"program": name, "runs_per_phase": 2.0, "hbm_per_chip": hbm, "fits": total <= 16, "code_bytes": 2**20}
    made |= {"tflop": {"total": 5.0}, "hbm_bytes_moved_per_chip": 3e9, "collectives_per_chip": {}, "compile_seconds": 9}
    made |= {"roofline": roofline(Topology.parse("v6e:2x2"), 4 * 918e12, 1638e9, 0)}
    return made | {"largest_buffers": [{"bytes": 3 * GIB, "shape": "bf16[3]", "source": "mlp"}]} | more


def test_table_and_what_does_not_fit():
    rows = [row("rollout", 12), row("update", 20), row("judge_answer", 17, refused="too much")]
    lines = report.table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert "12.00/16.0" in lines[1] and "compute" in lines[1] and "2.00" in lines[1]  # two seconds at half the peak
    text = report.does_not_fit(rows)
    assert "update does not fit: 20.00 of 16.00 GiB" in text and "bf16[3]  mlp" in text and "rollout" not in text
    assert report.does_not_fit(rows[:1]) == ""


def run_plan(*arguments):
    command = [sys.executable, "-m", "spatialreward_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_mistakes_end_in_one_line():
    config = "--config=configs/grpo.py:omnigen2"
    for arguments, message in (
        ((config,), "give --topology"),
        ((config, "--topology=v9:2x2"), "unknown"),
        ((config, "--topology=v6e:2x2", "--programs=dance"), "no program dance"),
        ((config, "--topology=v6e:2x2", "--mesh=3,1,1"), "4 chips"),
    ):
        result = run_plan(*arguments)
        assert result.returncode == 2 and result.stderr.startswith("error: ") and message in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_both_recipes_stay_within_their_aims():
    """At most 2003 and 811 TFLOP per image, and not by leaving something out: the forward passes are known."""
    parity, window = plan.flops_only(config_of())
    assert parity["within_aim"] and window["within_aim"]
    assert parity["sampling"] == window["sampling"]
    forward = 13 * (15.3 + 14.7 + 7.1) + 7 * 15.3
    assert forward < parity["sampling"]["tflop"] < 1.01 * forward
    assert parity["training"]["tflop"] > 12 / 20 * 3.8 * forward


def test_weights_are_those_of_the_files():
    config = config_of()
    config.editor = config.judge.model = "embedded"
    config.dtype = config.judge.dtype = "bfloat16"
    rows = {row["name"]: row for row in plan.weights_only(config)}
    files = {
        "judge": "judge/model.safetensors",
        "editor's transformer": "editor/transformer/diffusion_pytorch_model.safetensors",
        "editor's text tower": "editor/mllm/model.safetensors",
    }
    for name, file in files.items():
        size = (ASSETS / "embedded" / file).stat().st_size
        assert rows[name]["gigabytes"] * 1e9 == pytest.approx(size, rel=0.02), name
        assert rows[name]["parameters"] == pytest.approx(rows[name]["gigabytes"] / 2)
    assert rows["judge, int8"]["gigabytes"] < rows["judge"]["gigabytes"]
    whole = [row["gigabytes"] for row in rows.values() if "parameters" in row and row["name"] != "judge, int8"]
    assert rows["all of it, the judge not quantized"]["gigabytes"] == pytest.approx(sum(whole))


@pytest.mark.tpu_compile
def test_small_nets_compile_for_a_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the `tpu` extra is not installed")
    config = config_of()
    config.prompts, config.group, config.micro, config.sampler.steps, config.judge.batch = 8, 2, (1, 1), 4, 8
    topology = Topology.parse("v6e:2x2")
    request = Request(height=128, width=128, semantic=140, quality=100, answer=16)
    names = ("judge_encode", "judge_start", "judge_admit", "judge_answer")
    rows = plan.compile_all(config, topology, (1, 4, 1), names, request=request, layers=1)
    assert [row["program"] for row in rows] == list(names) and all(row["fits"] for row in rows)
    assert all(row["hbm_per_chip"]["cache"] > 0 and row["collectives_per_chip"] for row in rows[2:])
    assert all(row["roofline"]["seconds"] > 0 and row["code_bytes"] > 0 for row in rows)
