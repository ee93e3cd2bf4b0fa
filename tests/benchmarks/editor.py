"""Times the editor's transformer: one velocity, one guided step of three branches, the gradient of one GRPO step.

    python tests/benchmarks/editor.py --json=editor.json
    python tests/benchmarks/editor.py --size=embedded --side=64 --batch=8
    python tests/benchmarks/editor.py --reference=CLONE

CLONE is a clone of github.com/VectorSpaceLab/OmniGen2, or examples/OmniGen2-RL of VectorSpaceLab/EditScore, in an
environment that also has torch, diffusers, peft, accelerate and einops: the same weights then run in torch in the same
rounds, and results are compared. References of a guided step: `separate` runs the branches one after another
(OmniGen2's pipeline), `batched` as one padded batch (the RL framework); of the gradient: `separate` keeps all
activations, `batched` has gradient checkpointing, as the framework has.

The report: `rows` with the operations that a program needs (gflop), the median time, GFLOP/s, and `roofline`: the least
time at the rates measured in the same rounds (`machine`), over the time taken.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import common
import flops
import jax
import jax.numpy as jnp
import nets
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Branches, Guidance, guided, sde
from spatialreward_jax.flow.sampler import Trajectory
from spatialreward_jax.io.peft import LoRASpec, adapter_tensors, write_peft
from spatialreward_jax.io.pretrained import Placement, load_net
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.models import lora, omnigen2
from spatialreward_jax.rl import Batch, Objective, make_gradient, make_logp

GUIDANCE = Guidance(4.0, 2.0, (0.0, 0.6))
TIMES, COEF = (0.3, 0.35), 0.7
CLIP = (1e-4, 5e-4)


def define_flags() -> None:
    """The program's flags."""
    common.define_flags()
    flags.DEFINE_string("reference", "", "Clone whose transformer runs in torch beside ours.")
    flags.DEFINE_string("size", "720", "'embedded', or the transformer's width: a multiple of 360.")
    flags.DEFINE_integer("layers", 2, "Joint blocks; one block in each of the three refiners.", lower_bound=1)
    flags.DEFINE_integer("side", 256, "Side in pixels of the reference and of the edit.", lower_bound=16)
    flags.DEFINE_integer("text", 64, "Tokens of the instruction.", lower_bound=1)
    flags.DEFINE_integer("negative", 24, "Tokens of the negative prompt.", lower_bound=1)
    flags.DEFINE_integer("batch", 2, "Edits at a time.", lower_bound=1)
    flags.DEFINE_integer("rank", 32, "Of the adapter; its alpha is twice that.", lower_bound=1)


class Problem(NamedTuple):
    """A net and what it is asked.

    net: graphs, adapters, base. branches, x [B, T, C], t [B], batch: inputs. side: in latent patches.
    """

    config: omnigen2.OmniGen2Config
    spec: LoRASpec
    graphs: lora.Graphs
    adapters: dict
    base: dict
    branches: Branches
    x: jax.Array
    t: jax.Array
    batch: Batch
    side: int


def load(folder: pathlib.Path, given: flags.FlagValues) -> tuple:
    """(config, spec, graphs, adapters, base) of the transformer of a folder; the adapter is written there too."""
    config = omnigen2.OmniGen2Config.from_dict(nets.read_json(folder / "transformer" / "config.json"))
    place = Placement(make_mesh(devices=jax.devices()[:1]), jnp.dtype("float32"))
    graph, base = load_net(
        lambda rngs: omnigen2.OmniGen2Transformer(config, rngs=rngs),
        folder / "transformer",
        omnigen2.STEM,
        lambda names: omnigen2.ENTRIES,
        omnigen2.SHARDING,
        place,
    )
    spec = LoRASpec(given.rank, 2.0 * given.rank, ("to_q", "to_k", "to_v", "to_out.0"))
    graphs, adapters = lora.new_adapters(graph, base, omnigen2.ENTRIES, spec, given.seed)
    rng = np.random.default_rng(given.seed + 1)  # B is 0 in a new adapter, and then A has no gradient
    adapters = jax.tree.map(lambda x: x + jnp.asarray(0.01 * rng.normal(size=x.shape), x.dtype), adapters)
    write_peft(folder / "adapter", adapters, spec, omnigen2.ENTRIES)
    return config, spec, graphs, adapters, base


def pose(folder: pathlib.Path, given: flags.FlagValues) -> Problem:
    """Net and random inputs."""
    config, spec, graphs, adapters, base = load(folder, given)
    rng, side, b = np.random.default_rng(given.seed), given.side // 16, given.batch
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    text = lambda length: (draw(b, length, config.text_feat_dim), jnp.ones((b, length), bool))
    tokens, sizes = side * side, jnp.full((b, 1, 2), side, jnp.int32)
    refs = draw(b, 1, tokens, config.token_channels)
    full = omnigen2.Conditioning(*text(given.text), refs, sizes, sizes[:, 0])
    ref = full.with_text(*text(given.negative))
    branches = Branches(full, ref, ref.without_references())
    x, t = draw(b, tokens, config.token_channels), jnp.full((b,), TIMES[0], jnp.float32)
    times = jnp.broadcast_to(jnp.array(TIMES, jnp.float32), (b, 1, 2))
    sigma = sde.sigma(times[..., 0], times[..., 1], COEF, False)
    after = x + draw(*x.shape) * sde.step_std(times[..., :1], times[..., 1:], sigma[..., None])
    trajectory = Trajectory(
        jnp.stack([x, after], 1)[:, None],
        jnp.ones(x.shape[:2], bool),
        times,
        sigma,
        jnp.array([True]),
        jnp.zeros((b, 1)),
    )
    batch = Batch(trajectory, branches, jnp.linspace(-1, 1, b + 1)[1:], jnp.ones(b, bool), jnp.ones((1, 1)))
    logp = make_logp(policy(graphs), Objective(CLIP, guidance=GUIDANCE))
    batch = batch._replace(trajectory=trajectory._replace(logp=jax.jit(logp)(adapters, base, batch)))
    return Problem(config, spec, graphs, adapters, base, branches, x, t, batch, side)


def policy(graphs: lora.Graphs) -> Callable:
    """The adapted net as `rl.update` takes it."""
    return lambda params, frozen, x, t, cond: velocity_fn(graphs, params, frozen, jnp.float32)(x, t, cond)


def programs(p: Problem) -> dict[str, Callable[[], Any]]:
    """Our three programs."""
    plain = lambda base: velocity_fn(p.graphs, None, base, jnp.float32)
    forward = jax.jit(lambda base, x, t, cond: plain(base)(x, t, cond))
    step = jax.jit(lambda base, x, t, branches: guided(plain(base), x, t, branches, GUIDANCE))
    gradient = jax.jit(make_gradient(policy(p.graphs), None, Objective(CLIP, guidance=GUIDANCE)))
    return {
        "velocity": lambda: forward(p.base, p.x, p.t, p.branches.full),
        "guided step": lambda: step(p.base, p.x, p.t, p.branches),
        "GRPO LoRA gradient": lambda: gradient(p.adapters, p.base, p.batch)[0],
    }


def work(p: Problem, given: flags.FlagValues) -> dict[str, common.Work]:
    """What each program must do."""
    tokens = p.side**2
    one = functools.partial(flops.omnigen2, p.config, target=tokens)
    shapes = ((given.text, (tokens,)), (given.negative, (tokens,)), (given.negative, ()))
    plain = [one(text=text, refs=refs) * given.batch for text, refs in shapes]
    adapted = sum((one(text=text, refs=refs, rank=given.rank) * given.batch for text, refs in shapes), flops.Flops())
    return {
        "velocity": common.Work(plain[0].forward),
        "guided step": common.Work(sum(branch.forward for branch in plain)),
        "GRPO LoRA gradient": common.Work(adapted.forward + adapted.backward, adapted.again),
    }


def references(p: Problem, folder: pathlib.Path) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Torch programs "ours/variant" of the same work, and functions that give their results in our form."""
    import torch
    import torch_editor as te

    plain = te.TorchVelocity(te.load_transformer(folder / "transformer"), p.config)
    adapted = te.TorchVelocity(te.load_transformer(folder / "transformer", folder / "adapter"), p.config)
    saving_net = te.load_transformer(folder / "transformer", folder / "adapter")
    saving_net.base_model.model.enable_gradient_checkpointing()
    saving = te.TorchVelocity(saving_net, p.config)
    branches = [te.Branch(cond) for cond in p.branches]
    padded, size = te.Branch.padded(branches), (p.side, p.side)
    x, t = te.images(p.x, size), torch.from_numpy(np.array(p.t))
    after = te.images(p.batch.trajectory.latents[:, 0, 1], size)
    old, advantage = (torch.from_numpy(np.array(a)) for a in (p.batch.trajectory.logp[:, 0], p.batch.advantage))
    sigma = float(p.batch.trajectory.sigma[0, 0])

    def gradient(net, velocity):
        net.zero_grad(set_to_none=True)
        logp, _ = te.log_prob(x, velocity(), after, TIMES, sigma)
        te.policy_loss(logp, old, advantage, CLIP).backward()
        return {name: w.grad.numpy() for name, w in net.named_parameters() if w.grad is not None}

    frozen = lambda run: lambda: torch.no_grad()(run)() is None
    runs = {
        "velocity": lambda: plain(x, t, branches[0]),
        "guided step": lambda: plain.separate(x, t, branches, GUIDANCE),
        "guided step, batched": lambda: plain.batched(x, t, padded, GUIDANCE),
    }
    kept = lambda: gradient(adapted.net, lambda: adapted.separate(x, t, branches, GUIDANCE))
    timed = {
        "velocity/torch": frozen(runs["velocity"]),
        "guided step/separate": frozen(runs["guided step"]),
        "guided step/batched": frozen(runs["guided step, batched"]),
        "GRPO LoRA gradient/separate": lambda: kept() is None,
        "GRPO LoRA gradient/batched": lambda: (
            gradient(saving.net, lambda: saving.batched(x, t, padded, GUIDANCE)) is None
        ),
    }
    return timed, {**{name: torch.no_grad()(run) for name, run in runs.items()}, "GRPO LoRA gradient": kept}


def compare(p: Problem, ours: dict[str, Callable], theirs: dict[str, Callable]) -> dict[str, dict[str, float]]:
    """Largest differences between our results and torch's."""
    image = lambda v: np.moveaxis(omnigen2.unpack(np.asarray(v), p.side, p.side), -1, 1)
    names = ("velocity", "guided step")
    found = {name: common.apart(image(ours[name]()), theirs[name]()) for name in names}
    tensors = adapter_tensors(ours["GRPO LoRA gradient"](), p.spec, omnigen2.ENTRIES)
    grads = {
        name.removeprefix("base_model.model.").replace(".default", ""): grad
        for name, grad in theirs["GRPO LoRA gradient"]().items()
    }
    if set(grads) != set(tensors):
        raise ValueError(f"{len(set(grads) ^ set(tensors))} adapter tensors are in one of the two nets alone")
    flat = lambda tree: np.concatenate([tree[name].reshape(-1) for name in sorted(tensors)])
    return found | {"GRPO LoRA gradient": common.apart(flat(tensors), flat(grads))}


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    common.limit_threads(given.threads)
    torch, packages = None, ()
    configs = nets.editor_configs(given.size, given.layers)
    room = min(configs["transformer"]["axes_lens"])
    if max(given.text, given.negative) > room:
        raise InputError(f"--text={given.text} --negative={given.negative}: this net has {room} rotary positions")
    if given.reference:
        import torch
        import torch_editor

        torch_editor.add_clone(given.reference)
        torch.set_num_threads(given.threads)
        packages = ("torch", "diffusers", "peft")
    report = common.environment(given, packages)
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        nets.write_editor(folder, configs, given.seed, ("transformer",))
        problem = pose(folder, given)
        ours = programs(problem)
        theirs, results = references(problem, folder) if given.reference else ({}, {})
    layer = nets.layer_shape(configs["transformer"], given.batch, given.text + 2 * problem.x.shape[1])
    seconds = common.interleaved({**common.probes(torch, layer), **ours, **theirs}, given.rounds)
    machine, needed = common.Machine.of(seconds, layer), work(problem, given)
    report |= {
        "config": configs["transformer"],
        "parameters": nets.count(problem.base),
        "adapter_parameters": nets.count(problem.adapters),
        "shapes": {
            name: {"text": cond.text.shape, "refs": cond.refs.shape, "target": problem.x.shape}
            for name, cond in problem.branches._asdict().items()
        },
        "machine": machine.report(),
        "rows": {name: common.row(seconds, name, needed[name], machine) for name in ours},
    }
    if given.reference:
        report["compared"] = compare(problem, ours, results)
    common.write(report, given.json)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
