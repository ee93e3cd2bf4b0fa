"""What the benchmarks share: flags, threads, interleaved timing, the machine's own rates, the report."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from spatialreward_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]

MATMUL = 2048
"""Side of the matrices whose product gives the machine's float32 rate."""

STREAM = 2**26
"""Float32 numbers that are read and written to measure the memory's rate: beyond any cache."""

THIN = 4
"""Rows of the thin matrix product, as in decoding for four answers: weights are read once for few operations."""

PAUSE = 0.05
"""Seconds between two runs: the threads of the library before stop spinning."""


def grpo_config(preset: str = "embedded") -> ConfigDict:
    """A preset of configs/grpo.py."""
    spec = importlib.util.spec_from_file_location("grpo_config", ROOT / "configs" / "grpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)


def define_flags() -> None:
    """Flags that every benchmark has."""
    flags.DEFINE_string("json", "", "File for the report; it is printed in any case.")
    flags.DEFINE_integer("threads", 2, "CPU threads, by pinning the process to as many cores.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Timed runs of each program, interleaved; the median counts.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of weights and inputs.")


def limit_threads(count: int) -> None:
    """Pins the process to `count` cores; to be called before the first computation."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise InputError(f"--threads={count}: this machine offers {len(cores)} cores")
    os.sched_setaffinity(0, cores[:count])


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of each program, after one untimed run: round by round, so that all meet the same load.

    A program returns when its work is done, or returns JAX arrays.
    """
    for run in programs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def probes(torch: Any, net: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """Programs that measure the machine, by XLA and, if given, by torch, all in float32: a square matrix product, a
    thin one whose weights lie beyond any cache, a stream through memory, and (by XLA) a product of the net's own shape.

    net: rows, width and inner width of a feed-forward layer of the net that is measured.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(MATMUL, MATMUL)).astype(np.float32) for _ in range(2))
    x, y = jnp.asarray(a), jnp.asarray(b)
    product, double = jax.jit(jnp.matmul), jax.jit(lambda s: 2 * s, donate_argnums=0)  # in place: no new pages
    held = [jnp.zeros(STREAM, jnp.float32)]
    side = math.isqrt(STREAM)
    few, many = np.ones((THIN, side), np.float32), np.ones((side, side), np.float32)
    thin, weights = jnp.asarray(few), jnp.asarray(many)

    def stream():
        held.append(jax.block_until_ready(double(held.pop())))

    rows, width, inner = net
    tokens, layer = jnp.ones((rows, width)), jnp.ones((width, inner))
    found = {
        "matmul/xla": lambda: product(x, y),
        "layer/xla": lambda: product(tokens, layer),
        "thin/xla": lambda: product(thin, weights),
        "stream/xla": stream,
    }
    if torch is not None:
        u, w = torch.from_numpy(a), torch.from_numpy(b)
        out, s = torch.empty(MATMUL, MATMUL), torch.ones(STREAM)
        copy = torch.empty_like(s)
        short, long = torch.from_numpy(few), torch.from_numpy(many)
        found |= {
            "thin/torch": lambda: torch.matmul(short, long) is None,
            "matmul/torch": lambda: torch.matmul(u, w, out=out) is None,
            "stream/torch": lambda: torch.mul(s, 2, out=copy) is None,
        }
    return found


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates that bound every program. matmul: float32 FLOP/s of the best library; memory: bytes/s, likewise.

    `parts` has each library's rates; that of the thin product is in bytes of weights per second. layer, thin: XLA's
    rates of products of the net's own shape, and of few rows with weights from memory.
    """

    matmul: float
    memory: float
    layer: float
    thin: float
    parts: Mapping[str, float]

    @classmethod
    def of(cls, seconds: Mapping[str, Sequence[float]], net: tuple[int, int, int]) -> "Machine":
        """From the median times of `probes`."""
        work = {"matmul": 2 * MATMUL**3, "layer": 2 * math.prod(net), "thin": 4 * STREAM, "stream": 8 * STREAM}
        rates = {
            name: work[name.split("/")[0]] / statistics.median(times)
            for name, times in seconds.items()
            if name.split("/")[0] in work
        }
        best = lambda kind: max(rate for name, rate in rates.items() if name.startswith(kind))
        return cls(best("matmul"), best("stream"), rates["layer/xla"], rates["thin/xla"], rates)

    def report(self) -> dict[str, Any]:
        """Numbers in GFLOP/s and GB/s."""
        return {
            "matmul_gflops": round(self.matmul / 1e9, 1),
            "memory_gb_per_s": round(self.memory / 1e9, 1),
            "probes": {name: round(rate / 1e9, 1) for name, rate in self.parts.items()},
        }


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a program must do at least.

    Attributes:
      flops: floating-point operations, counted from the shapes; without what is computed again to save memory.
      again: floating-point operations that our program does again to save memory.
      bytes: that must come from memory; 0 where products dominate.
    """

    flops: float
    again: float = 0.0
    bytes: float = 0.0


def row(seconds: Mapping[str, Sequence[float]], ours: str, work: Work, machine: Machine) -> dict[str, Any]:
    """One program of ours beside its references, all named `ours` or `ours/...` in `seconds`.

    `roofline`: the least time that the machine's rates allow, over ours; `own_products`: the same from XLA's rates of
    products like the net's (`Machine.layer`, or `Machine.thin` where memory bounds), what is computed again included.
    `speedup`: the reference's median over ours.
    """
    median = statistics.median(seconds[ours])
    least = max(work.flops / machine.matmul, work.bytes / machine.memory)
    out: dict[str, Any] = {
        "gflop": round(work.flops / 1e9, 3),
        "ms": _ms(median),
        "ms_all": [_ms(s) for s in seconds[ours]],
        "gflops": round(work.flops / median / 1e9, 1),
        "roofline": round(least / median, 3),
        "own_products": round(max((work.flops + work.again) / machine.layer, work.bytes / machine.thin) / median, 3),
    }
    if work.again:
        out["gflop_again"] = round(work.again / 1e9, 3)
        out["roofline_with_recomputation"] = round((work.flops + work.again) / machine.matmul / median, 3)
    if work.bytes:
        out["gb"] = round(work.bytes / 1e9, 4)
        out["bound"] = "memory" if work.bytes / machine.memory > work.flops / machine.matmul else "matmul"
    references = {name.removeprefix(f"{ours}/"): s for name, s in seconds.items() if name.startswith(f"{ours}/")}
    if references:
        out["references"] = {
            name: {
                "ms": _ms(statistics.median(s)),
                "ms_all": [_ms(x) for x in s],
                "speedup": round(statistics.median(s) / median, 3),
            }
            for name, s in references.items()
        }
    return out


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def apart(ours: Any, theirs: Any) -> dict[str, float]:
    """How far two results are from each other: largest difference, and the largest value beside it."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"results of shapes {ours.shape} and {theirs.shape}")
    return {"max_error": float(np.abs(ours - theirs).max()), "max_value": float(np.abs(theirs).max())}


def environment(given: flags.FlagValues, packages: Sequence[str]) -> dict[str, Any]:
    """When, where and with what was measured. `packages` beside jax and jaxlib."""
    return {
        "command": {name: given[name].value for name in given if given[name].present},
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu(),
        "threads": given.threads,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", *packages)},
    }


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def write(report: dict[str, Any], file: str) -> None:
    """Prints the report and, if a file is named, writes it there."""
    report["load_after"] = round(os.getloadavg()[0], 2)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda flat: " ".join(flat[0].split()), json.dumps(report, indent=1))
    print(text)
    if file:
        pathlib.Path(file).write_text(text + "\n")
