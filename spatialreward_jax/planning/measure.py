"""One program compiled for a slice: memory, FLOPs, traffic, collectives, and the time that they suggest."""

import math
import re
import time
from collections.abc import Iterable
from typing import Any

import jax

from spatialreward_jax.mesh import path_name
from spatialreward_jax.planning.collectives import collectives, summary
from spatialreward_jax.planning.flops import count_jaxpr
from spatialreward_jax.planning.hlo import Module
from spatialreward_jax.planning.programs import Program, Run
from spatialreward_jax.planning.topology import GIB, Topology
from spatialreward_jax.planning.traffic import largest_buffers, memory_traffic

MATMUL_SHARE = 0.5
"""Share of the peak that matrix products are assumed to reach."""

ASSUMPTIONS = (
    f"step time = max(FLOPs per chip at {MATMUL_SHARE:.0%} of the bf16 peak, HBM bytes at the full HBM bandwidth, "
    "bytes sent over both directions of one torus axis): the three overlap entirely, collectives do not share several "
    "axes, all chips do equal work, and nothing waits for the host; decoding runs `answer` tokens, "
    "without the judge's grammar, adapter or draws"
)


EFFORT = -1.0
"""The compiler's effort on fast machine code, -1 to 1. At 0, what a run uses, matrix products take ten times as long to
compile. What this gives up: code is smaller and temporaries are somewhat larger here than in the run."""


def per_chip(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device; random keys and what has no sharding count whole."""
    total = 0
    for x in jax.tree.leaves(tree):
        if not hasattr(x, "shape") or jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
            continue
        where = getattr(x, "sharding", None)
        shape = x.shape if where is None else where.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


def measure(program: Program, run: Run, topology: Topology) -> tuple[dict[str, Any], Any]:
    """Compiles a program -> (its row of the report, its outputs as shapes with shardings).

    A program that the compiler finds too large for the chip gives a row that does not fit, and no outputs.
    """
    start = time.monotonic()
    with jax.set_mesh(run.mesh_of(program)):
        traced = program.fn.trace(*program.args)
        lowered = traced.lower()
        traced_in = time.monotonic() - start
        flops = count_jaxpr(traced.jaxpr, program.counting)
        start = time.monotonic()
        try:
            compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": EFFORT})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _too_large(program, run, topology, str(error)), None
    took = time.monotonic() - start
    module = Module(compiled.as_text(), program.counting.trips or 1, program.counting.heavy)
    found, moved = collectives(module), memory_traffic(module)
    hbm = _memory(program, run, topology, compiled.memory_analysis())
    sent = summary(found)
    row = {
        "program": program.name,
        "runs_per_phase": program.runs,
        "trace_seconds": round(traced_in, 1),
        "compile_seconds": round(took, 1),
        "code_bytes": compiled.memory_analysis().generated_code_size_in_bytes,
        "hbm_per_chip": hbm,
        "fits": hbm["total"] <= topology.chip.usable,
        "tflop": {
            "total": flops.total / 1e12,
            "per_chip": flops.total / topology.chips / 1e12,
            "linear": flops.linear / 1e12,
            "convolution": flops.convolution / 1e12,
            "attention": flops.attention / 1e12,
        },
        "hbm_bytes_moved_per_chip": moved,
        "collectives_per_chip": sent,
        "largest_collectives": [vars(c) for c in found[:5]],
        "roofline": roofline(topology, flops.total, moved, sum(s["bytes"] for s in sent.values())),
        "largest_buffers": sorted(
            [*largest_buffers(module), *_arguments(program)], key=lambda buffer: -buffer["bytes"]
        )[:8],
    }
    outputs = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), traced.out_info, compiled.output_shardings
    )
    return row, outputs


def roofline(topology: Topology, flops: float, moved: float, sent: float) -> dict[str, Any]:
    """Seconds of one run under `ASSUMPTIONS`. flops: of all chips; moved, sent: bytes of one chip."""
    chip = topology.chip
    parts = {
        "compute": flops / topology.chips / (chip.flops * MATMUL_SHARE),
        "memory": moved / chip.bandwidth,
        "network": sent / (2 * chip.link),
    }
    return {"seconds": max(parts.values()), "bound_by": max(parts, key=parts.get), **parts}


def _memory(program: Program, run: Run, topology: Topology, analysis: Any) -> dict[str, Any]:
    own = {name: per_chip(tree) for name, tree in run.weights.items()}
    weights = sum(own[name] for name in program.uses)
    optimizer = per_chip(program.optimizer)
    beside = sum(size for name, size in own.items() if name not in program.uses)
    arguments, output = analysis.argument_size_in_bytes, analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = arguments + output + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes + beside
    return {
        "weights": weights,
        "weights_by_net": own,
        "optimizer": optimizer,
        "data": max(arguments - weights - optimizer, 0),
        "outputs": output,
        "temporaries": analysis.temp_size_in_bytes,
        "cache": _cache(program, run),
        "beside": beside,
        "total": total,
        "capacity": topology.chip.usable,
    }


def _cache(program: Program, run: Run) -> int:
    """Bytes per chip of [L, B, S, K, H] arrays, rows and key heads split where they divide."""
    if program.cache is None:
        return 0
    mesh, shape = run.mesh_of(program), program.cache[0].shape
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    split = (parts if shape[1] % parts == 0 else 1) * (
        mesh.shape["tensor"] if shape[3] % mesh.shape["tensor"] == 0 else 1
    )
    return sum(x.size * x.dtype.itemsize for x in program.cache) // split


def _arguments(program: Program) -> Iterable[dict[str, Any]]:
    """The largest arguments by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(program.args)
    rows = [
        {"bytes": per_chip(x), "shape": f"{x.dtype}{list(x.shape)}", "source": f"argument {path_name(path)}"}
        for path, x in leaves
        if hasattr(x, "dtype")
    ]
    return sorted(rows, key=lambda row: -row["bytes"])[:8]


def _too_large(program: Program, run: Run, topology: Topology, message: str) -> dict[str, Any]:
    """The row of a program that the compiler refused, from its message."""
    used = re.search(r"Used ([\d.]+)([KMG]) of|\(([\d.]+)([KMG])\) exceeds", message)
    number, unit = [x for x in used.groups() if x] if used else ("inf", "G")
    total = float(number) * {"K": 2**10, "M": 2**20, "G": GIB}[unit]
    own = {name: per_chip(tree) for name, tree in run.weights.items()}
    beside = sum(size for name, size in own.items() if name not in program.uses)
    buffers = [
        {"bytes": float(size) * {"K": 2**10, "M": 2**20, "G": GIB}[unit], "shape": shape, "source": source}
        for size, unit, source, shape in re.findall(
            r"Size: ([\d.]+)([KMG])\n\s+(?:Operator: op_name=\"([^\"]*)\".*\n\s+)?Shape: (\S+)", message
        )
    ]
    return {
        "program": program.name,
        "runs_per_phase": program.runs,
        "fits": False,
        "refused": message.splitlines()[0],
        "hbm_per_chip": {
            "weights": sum(own[name] for name in program.uses),
            "weights_by_net": own,
            "beside": beside,
            "total": total + beside,
            "capacity": topology.chip.usable,
        },
        "largest_buffers": (buffers or list(_arguments(program)))[:8],
    }
