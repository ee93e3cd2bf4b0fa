"""Compiles a run's programs for a TPU slice that need not be there, and says whether they fit and what they cost.

    python -m spatialreward_jax.plan --config=configs/grpo.py:omnigen2 --topology=v6e:4x4
    python -m spatialreward_jax.plan --config=configs/grpo.py:omnigen2 --topology=v5e:4x8 --mesh=4,8,1 --json=plan.json
    python -m spatialreward_jax.plan --config=configs/grpo.py:omnigen2 --flops_only
    python -m spatialreward_jax.plan --config=configs/grpo.py:omnigen2 --weights_only

Where the config names no editor or judge, the published sizes are planned. Exit status 1: something does not fit.
Compiling needs libtpu (the `tpu` extra), no TPU; results are kept, and used again while config and code stay the same.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever this machine has, it is not what is planned for

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.mesh import make_mesh
from spatialreward_jax.planning import measure, recipe_cost, report
from spatialreward_jax.planning.inputs import Request
from spatialreward_jax.planning.nets import editor_nets, folder_of, judge_net
from spatialreward_jax.planning.programs import MAKERS, Run, programs
from spatialreward_jax.planning.topology import Topology
from spatialreward_jax.planning.weights import weights_of
from spatialreward_jax.recipes.grpo_settings import Settings
from spatialreward_jax.reporting.progress import write_json
from spatialreward_jax.reward.batching import Limits
from spatialreward_jax.reward.vlm import Decoding

PACKAGE = pathlib.Path(__file__).parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "spatialreward_jax" / "plan"


def settings_of(config: ConfigDict) -> Settings:
    """The recipe's settings, without reading or writing any data. Raises InputError."""
    if config.task != "flow_grpo":
        raise InputError(f"plan knows the recipe flow_grpo, not {config.task!r}: use configs/grpo.py")
    config = ConfigDict(config.to_dict())
    config.data.path, config.editor, config.eval.heldout = "planned", config.editor or "published", 0
    return Settings.from_config(config, pathlib.Path())


def sizes_of(mesh: str | None, topology: Topology) -> tuple[int, int, int]:
    """Mesh sizes from a flag such as "2,8,1"; by default weights split over as many chips as divide 2520 channels, but
    over half of a slice at most: where one axis has all chips, XLA makes each product of partial ones, as the weights
    come by, and that moves several times the bytes (on v6e:2x4 a rollout takes 192 s instead of 95 by its roofline).

    Raises:
      InputError: not three numbers whose product is the number of chips.
    """
    if not mesh:
        fsdp = next(n for n in (8, 4, 2, 1) if (topology.chips % n == 0 and topology.chips > n) or n == 1)
        return topology.chips // fsdp, fsdp, 1
    try:
        data, fsdp, tensor = (int(n) for n in mesh.split(","))
    except ValueError:
        raise InputError(f"mesh {mesh!r}: give data,fsdp,tensor, such as 2,8,1") from None
    if min(data, fsdp, tensor) < 1 or data * fsdp * tensor != topology.chips:
        raise InputError(
            f"mesh {mesh}: give positive sizes whose product is the {topology.chips} chips of {topology.name}"
        )
    return data, fsdp, tensor


def flops_only(config: ConfigDict) -> list[dict[str, Any]]:
    """TFLOP per image of both recipes, see `planning.recipe_cost`."""
    settings = settings_of(config)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    nets = editor_nets(folder_of(config.editor, "editor"), mesh, dtype=config.dtype, spec=settings.lora)
    return [
        recipe_cost.recipe_cost(nets, recipe_cost.of_recipe(settings, recipe)).to_json() for recipe in recipe_cost.AIMS
    ]


def weights_only(config: ConfigDict) -> list[dict[str, Any]]:
    """Parameters and gigabytes of the nets, see `planning.weights`."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    editor, judge = folder_of(config.editor, "editor"), folder_of(config.judge.model, "judge")
    nets = editor_nets(editor, mesh, dtype=config.dtype, spec=settings_of(config).lora)
    judges = (judge_net(judge, mesh, dtype=config.judge.dtype, quantize=format) for format in (None, "int8"))
    return weights_of(nets, *judges)


def run_of(config: ConfigDict, mesh: Mesh, *, request: Request | None = None, layers: int | None = None) -> Run:
    """What a config runs on a mesh whose devices need not be there; arguments and errors as in `compile_all`."""
    settings, judge = settings_of(config), config.judge
    return Run(
        nets=editor_nets(
            folder_of(config.editor, "editor"), mesh, dtype=config.dtype, spec=settings.lora, layers=layers
        ),
        judge=judge_net(
            folder_of(judge.model, "judge"), mesh, dtype=judge.dtype, quantize=judge.quantize or None, layers=layers
        ),
        settings=settings,
        request=request or Request(*config.data.default_size),
        decoding=Decoding(max_new_tokens=judge.max_new_tokens),
        limits=Limits(batch=judge.batch),
        ensemble=judge.ensemble,
    )


def compile_all(
    config: ConfigDict,
    topology: Topology,
    sizes: tuple[int, int, int],
    names: Sequence[str] = tuple(MAKERS),
    *,
    request: Request | None = None,
    layers: int | None = None,
    say=print,
) -> list[dict[str, Any]]:
    """Rows of the report, one per program.

    Args:
      config: of the recipe.
      topology: the slice. sizes: of the mesh.
      names: programs, of `MAKERS`.
      request: what every request looks like; by default as in the config's sizes.
      layers: cut every net to this depth, for tests.
      say: is told about each program when it is done.

    Raises:
      InputError: no libtpu, no such slice, or sizes that do not divide.
    """
    run = run_of(config, make_mesh(*sizes, devices=topology.devices()), request=request, layers=layers)
    rows = []

    def compiled(program):
        row, outputs = measure.measure(program, run, topology)
        say(f"{row['program']}: {'fits' if row['fits'] else 'does not fit'}, {row.get('compile_seconds', '-')} s")
        return row, outputs

    for row in programs(run, tuple(names), compiled):
        rows.append(row)
    return rows


def key_of(*parts: Any) -> str:
    """Hash of what a plan depends on: the parts, the package's code, jax and libtpu."""
    digest = hashlib.sha256(repr((parts, versions())).encode())
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def stamp() -> dict[str, Any]:
    """When a report was made, and with what."""
    return {"date": datetime.date.today().isoformat(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of what the numbers come from."""
    try:
        import libtpu

        tpu = libtpu.__version__
    except ImportError:
        tpu = ""
    return {"jax": jax.__version__, "libtpu": tpu}


def make_plan(
    config: ConfigDict, topology: Topology, sizes: tuple[int, int, int], names: Sequence[str]
) -> dict[str, Any]:
    """The whole report as JSON; from the cache where nothing changed."""
    kept = CACHE / f"{key_of(config.to_json(), topology, sizes, tuple(names))}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    rows = compile_all(config, topology, sizes, names, say=lambda line: print(line, file=sys.stderr, flush=True))
    plan = {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": dict(zip(("data", "fsdp", "tensor"), sizes)),
        "chip": dataclasses.asdict(topology.chip),
        **stamp(),
        "fits": all(row["fits"] for row in rows),
        "phase_seconds_on_devices": sum(
            row["roofline"]["seconds"] * row["runs_per_phase"] for row in rows if "roofline" in row
        ),
        "assumptions": measure.ASSUMPTIONS,
        "request": dataclasses.asdict(Request(*config.data.default_size)),
        "programs": rows,
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, plan)
    return plan


def main(argv: Sequence[str]) -> int:
    """Plans what the flags say; returns the exit status."""
    del argv
    config = _CONFIG.value
    if _FLOPS_ONLY.value:
        plan = stamp() | {"assumptions": recipe_cost.ASSUMPTIONS, "recipes": flops_only(config)}
        status, text = 0, report.recipes(plan["recipes"])
    elif _WEIGHTS_ONLY.value:
        plan = stamp() | {"weights": weights_only(config)}
        status, text = 0, report.weights(plan["weights"])
    else:
        if not _TOPOLOGY.value:
            raise InputError("give --topology, such as v6e:4x4, --flops_only or --weights_only")
        names = tuple(_PROGRAMS.value) or tuple(MAKERS)
        if unknown := sorted(set(names) - set(MAKERS)):
            raise InputError(f"no program {', '.join(unknown)}; choose among {', '.join(MAKERS)}")
        topology = Topology.parse(_TOPOLOGY.value)
        plan = make_plan(config, topology, sizes_of(_MESH.value, topology), names)
        status = 0 if plan["fits"] else 1
        text = report.table(plan["programs"]) + "\n" + (report.does_not_fit(plan["programs"]) or "all programs fit")
    print(text)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(plan, indent=1) + "\n")
    return status


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    _TOPOLOGY = flags.DEFINE_string("topology", "", "Slice, chip:shape: v5e:4x8, v6e:4x4, v5p:2x2x2, v4:2x2x4.")
    _MESH = flags.DEFINE_string(
        "mesh", "", "Sizes data,fsdp,tensor; by default fsdp takes up to 8 chips, half at most."
    )
    _PROGRAMS = flags.DEFINE_list("programs", [], f"Of {', '.join(MAKERS)}; by default all.")
    _JSON = flags.DEFINE_string("json", "", "File to write the whole report to.")
    _FLOPS_ONLY = flags.DEFINE_bool("flops_only", False, "Only count TFLOP per image of both recipes; needs no libtpu.")
    _WEIGHTS_ONLY = flags.DEFINE_bool("weights_only", False, "Only list what the nets take; needs no libtpu.")
    flags.mark_flag_as_required("config")
    cli.run(main)
