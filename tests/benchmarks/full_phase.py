"""Times a phase of the main job at the published sizes: editor, text tower, autoencoder and judge on one accelerator.

    python tests/benchmarks/full_phase.py --json=full.json --peak=989 [--reference=CLONE]
    python tests/benchmarks/full_phase.py --size=embedded --side=64 --prompts=2 --group=2 --new=8

bfloat16, random weights drawn on the device (nothing is downloaded), the preset `omnigen2` with the window recipe and
its micro-batches. Wants about 45 GB beside the samples; the second line runs anywhere. Texts of a random judge cannot
be read, so that every answer has `--new` tokens, and the rewards are given numbers; the judge's work is done all the
same. `--peak`: of the accelerator, dense bfloat16 TFLOP/s (an H100 or H200 SXM has 989, by NVIDIA's data sheet).
With `--reference` (see `editor.py`) torch runs the official transformer's forward, bfloat16, on the same device.

Not run at full size yet: no accelerator was at hand.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory of its own

import json
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from nets import count
from phase import INSTRUCTION, FixedReward

from spatialreward_jax import cli
from spatialreward_jax.data.pipeline import EditBatch
from spatialreward_jax.data.requests import EditRequest
from spatialreward_jax.editor import EditorNets, load_nets
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.io.pretrained import ASSETS, read_json
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.planning.flops import Counting, count_flops
from spatialreward_jax.planning.recipe_cost import guided_share
from spatialreward_jax.recipes.flow_grpo import FlowGRPO
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.reward.backends import JudgeBackend, WeightedReward
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.vlm import VLM, Decoding

PARTS = ("transformer", "vae", "mllm")
ROOMS = ("encode", "sample", "decode", "score", "_updates")
MATMUL = 8192
"""Side of the bfloat16 product that measures the accelerator."""


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.FLAGS.set_default("rounds", 3)
    flags.DEFINE_string("reference", "", "Clone whose transformer runs in torch on the same device.")
    flags.DEFINE_enum("size", "published", ["published", "embedded"], "Of all nets.")
    flags.DEFINE_integer("side", 512, "Side in pixels of sources and edits, a multiple of 32.", lower_bound=32)
    flags.DEFINE_integer("prompts", 4, "Prompts of a phase, an even number.", lower_bound=2)
    flags.DEFINE_integer("group", 12, "Edits of each prompt, a multiple of 3 (of 2 with --size=embedded).")
    flags.DEFINE_integer("new", 300, "Tokens of each of the judge's answers.", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "Answers decoded at a time.", lower_bound=1)
    flags.DEFINE_float("peak", 0.0, "Dense bfloat16 TFLOP/s of the accelerator by its data sheet; 0: unknown.")


def write_folders(root: pathlib.Path, size: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Folders of an editor and a judge of a size, without weights, with the embedded tokenizers."""
    editor, judge = root / "editor", root / "judge"
    for part in PARTS:
        (editor / part).mkdir(parents=True)
        shutil.copy(ASSETS / size / "editor" / part / "config.json", editor / part)
    shutil.copytree(ASSETS / "embedded" / "editor" / "processor", editor / "processor")
    shutil.copytree(ASSETS / "embedded" / "judge", judge)
    config = read_json(ASSETS / size / "judge" / "config.json")
    own = read_json(judge / "config.json")
    config |= {name: own[name] for name in own if name.endswith("_token_id")}
    (judge / "config.json").write_text(json.dumps(config))
    shutil.copy(ASSETS / size / "judge" / "preprocessor_config.json", judge)
    return editor, judge


def settings_of(editor: pathlib.Path, given: flags.FlagValues) -> Settings:
    """The preset `omnigen2` with the window recipe and the benchmark's number of edits."""
    config = common.grpo_config("omnigen2")
    config.update({"editor": str(editor), "recipe": "window", "kl_weight": 0.0, "seed": given.seed})
    config.update({"prompts": given.prompts, "group": given.group, "eval": {"prompts": 0}})
    config.micro = (given.prompts // 2, 3 if given.group % 3 == 0 else 1)
    return Settings.from_config(config, editor)


def load_editor(folder: pathlib.Path, given: flags.FlagValues) -> EditorNets:
    """The three nets with random weights, on the first device."""
    scratch = tuple((part, given.seed) for part in PARTS)
    return load_nets(folder, dtype="bfloat16", mesh=make_mesh(devices=jax.devices()[:1]), scratch=scratch)


def load_reward(folder: pathlib.Path, given: flags.FlagValues) -> WeightedReward:
    """A random judge, whose answers are made and count nothing, beside given numbers."""
    net = load_judge(folder, dtype="bfloat16", scratch=given.seed, serving=True)
    processor, limits = Processor(folder, "rl"), Limits(batch=given.batch)
    judge = RewardModel(VLM(net, processor, Decoding(max_new_tokens=given.new), model="random", limits=limits))
    return WeightedReward({"answers": JudgeBackend(judge), "given": FixedReward()}, {"answers": 0.0, "given": 1.0})


def timed(task: FlowGRPO) -> dict[str, list[float]]:
    """Has the rooms of a task note their seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in ROOMS}

    def watched(run: Callable, mine: list[float]) -> Callable:
        def room(*args):
            start = time.perf_counter()
            out = run(*args)
            jax.block_until_ready([x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)])
            mine.append(time.perf_counter() - start)
            return out

        return room

    for name in ROOMS:
        setattr(task, name, watched(getattr(task, name), seconds[name]))
    return seconds


def counted(task: FlowGRPO) -> dict[str, float]:
    """Has the transformer's programs note their FLOPs per call, from the arguments that they get."""
    found: dict[str, float] = {}

    def noting(name: str, program: Callable) -> Callable:
        def call(*args):
            if name not in found:
                found[name] = count_flops(program, *args, counting=Counting(heavy=guided_share(task.settings))).total
            return program(*args)

        return call

    for name in ("rollout", "update"):
        setattr(task.programs, name, noting(name, getattr(task.programs, name)))
    return found


def matmul() -> Callable[[], jax.Array]:
    """A bfloat16 product of `MATMUL`."""
    x = jnp.ones((MATMUL, MATMUL), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return lambda: product(x, x)


def forwards(task: FlowGRPO, batch: EditBatch, given: flags.FlagValues) -> dict[str, Callable[[], Any]]:
    """The editor's forward, ours and the official one in torch, on `group` samples of one prompt."""
    nets, rows = task.nets, given.group
    cond = jax.tree.map(lambda x: jnp.repeat(x[:1], rows, axis=0), task.encode(batch, 0).branches.full)
    tokens = (given.side // nets.multiple) ** 2
    x = jax.random.normal(jax.random.key(0), (rows, tokens, nets.transformer.config.token_channels), jnp.float32)
    t, graphs = jnp.full((rows,), 0.3), nets.transformer.graph
    ours = jax.jit(lambda base, x, t, cond: velocity_fn(graphs, None, base, jnp.bfloat16)(x, t, cond))
    programs: dict[str, Callable[[], Any]] = {"forward": lambda: ours(nets.transformer.params, x, t, cond)}
    if given.reference:
        programs["forward/torch"] = torch_forward(nets, cond, x, t, given)
    return programs


def torch_forward(nets: EditorNets, cond: Any, x: Any, t: Any, given: flags.FlagValues) -> Callable[[], None]:
    """The official transformer with random weights in bfloat16, on torch's accelerator if it has one."""
    import torch
    import torch_editor

    torch_editor.add_clone(given.reference)
    from omnigen2.models.transformers.transformer_omnigen2 import OmniGen2Transformer2DModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = OmniGen2Transformer2DModel.load_config(nets.folder / "transformer")
    with torch.device(device):
        net = OmniGen2Transformer2DModel.from_config(config).to(torch.bfloat16).eval().requires_grad_(False)
    place = lambda tensor: tensor.to(device, torch.bfloat16) if tensor.is_floating_point() else tensor.to(device)
    velocity = torch_editor.TorchVelocity(net, nets.transformer.config)
    velocity.freqs = [table.to(device) for table in velocity.freqs]
    cond = jax.tree.map(lambda leaf: np.asarray(leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf), cond)
    branch = torch_editor.Branch(cond)
    branch.text, branch.mask = place(branch.text), branch.mask.to(device)
    branch.refs = [refs and [place(image) for image in refs] for refs in branch.refs]
    side = given.side // nets.multiple
    state, times = place(torch_editor.images(x, (side, side))), torch.from_numpy(np.array(t)).to(device)

    def run():
        with torch.no_grad():
            velocity(state, times, branch)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given, report = (
        flags.FLAGS,
        common.environment(flags.FLAGS, ("torch", "diffusers") if flags.FLAGS.reference else ()),
    )
    with tempfile.TemporaryDirectory() as path:
        editor, judge = write_folders(pathlib.Path(path), given.size)
        requests = tuple(EditRequest(INSTRUCTION, (), INSTRUCTION, key=k) for k in range(given.prompts))
        nets, reward = load_editor(editor, given), load_reward(judge, given)
        task = FlowGRPO(settings_of(editor, given), requests, nets, reward, pathlib.Path(path))
        shape = (given.prompts, given.side, given.side, 3)
        pixels = np.random.default_rng(given.seed).integers(0, 256, shape, np.uint8)
        batch = EditBatch(requests, tuple((image,) for image in pixels), ((given.side, given.side),) * given.prompts)
        single = common.interleaved({"matmul": matmul(), **forwards(task, batch, given)}, given.rounds)
        flops, rooms, state = counted(task), timed(task), task.init(None)
        for _ in range(1 + given.rounds):  # the first one compiles
            state, metrics = task.step(state, batch)
            jax.block_until_ready(metrics["update2/grad_norm"])
    device = jax.devices()[0]
    report["device"] = {
        "kind": device.device_kind,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }
    judge_net = reward.backends["answers"].judge.answerer.net
    trees = {"transformer": nets.transformer.params, "text tower": nets.text.params, "judge": judge_net.base}
    report["parameters"] = {name: count(tree) for name, tree in trees.items()}
    report |= results(given, single, rooms, flops)
    common.write(report, given.json)


def results(given: flags.FlagValues, single: dict, rooms: dict, flops: dict[str, float]) -> dict[str, Any]:
    """Seconds per phase and room, images per second, TFLOP/s of the transformer and their share of both rates."""
    median = {name.strip("_"): statistics.median(s[-given.rounds :]) for name, s in rooms.items()}
    whole, images = sum(median.values()), given.prompts * given.group
    measured = 2 * MATMUL**3 / statistics.median(single["matmul"]) / 1e12
    rates = {
        "sample": flops["rollout"] / median["sample"] / 1e12,
        "updates": 2 * flops["update"] / median["updates"] / 1e12,
    }
    share = lambda rate: {"of_matmul": rate / measured} | ({"of_peak": rate / given.peak} if given.peak else {})
    return {
        "seconds": {**median, "phase": whole},
        "images_per_second": images / whole,
        "matmul_tflops": measured,
        "transformer_tflops": {name: {"tflops": rate, **share(rate)} for name, rate in rates.items()},
        "forward_ms": {name: 1e3 * statistics.median(s) for name, s in single.items() if name != "matmul"},
    }


if __name__ == "__main__":
    define_flags()
    cli.run(main)
