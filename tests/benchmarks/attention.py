"""Times the attention op at our nets' shapes, backend by backend, and writes JSON.

    python tests/benchmarks/attention.py --out=attention.json [--shapes=judge,editor] [--repeats=5]

For every shape and backend: milliseconds (best of the repeats) of the forward pass, of forward and backward together
and of region attention, the matmul rate that the forward pass reaches, and the compiled program's temporaries. The xla
backend is timed at several limits of score bytes; `xla.CPU_BYTES` is the best of them on a CPU. Published sizes are
meant for accelerators; the embedded ones and `--shapes=slices` (few heads of the published ones) for CPUs.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError
from spatialreward_jax.kernels import cudnn, pallas_tpu, region_pallas, region_xla, xla
from spatialreward_jax.kernels.xla import Inputs

SHAPES = {  # B, T, N, K, H; segments
    "embedded": {"judge": ((4, 512, 4, 2, 32), True), "editor": ((8, 160, 4, 2, 24), True)},
    "slices": {"editor 512 px": ((1, 2150, 3, 1, 120), True), "vision 512 px": ((2, 1024, 2, 2, 72), True)},
    "editor": {"512 px, one reference": ((4, 2150, 21, 7, 120), True)},
    "judge": {"prefill": ((8, 1024, 32, 8, 128), True), "vision": ((16, 1024, 16, 16, 72), False)},
    "text": {"tower": ((16, 256, 16, 2, 128), True)},
}
LIMITS = tuple(2**20 * size for size in (1, 4, 16, 64, 512))


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("out", "", "File for the JSON; by default it is printed.")
    flags.DEFINE_list("shapes", ["embedded", "slices"], f"Some of {', '.join(SHAPES)}.")
    flags.DEFINE_integer("repeats", 5, "Runs of each program; the best one counts.", lower_bound=1)


def make(shape: tuple, segmented: bool, dtype) -> Inputs:
    """Random q, k, v; the last tenth of each row is padding where segmented."""
    b, t, n, k, h = shape
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(b, t, heads, h)), dtype) for heads in (n, k, k)]
    ids = jnp.broadcast_to((jnp.arange(t) >= t - t // 10).astype(jnp.int32), (b, t))
    return Inputs(*arrays, (ids, ids) if segmented else None, None)


def timed(fn, args, repeats: int) -> dict:
    """Best run in milliseconds and the program's temporaries in MiB."""
    program = jax.jit(fn).lower(*args).compile()
    jax.block_until_ready(program(*args))
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        runs.append(time.perf_counter() - start)
    memory = program.memory_analysis()
    return {"ms": round(min(runs) * 1e3, 3), "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 2)}


def backends(inputs: Inputs) -> dict:
    """Name -> (forward, backward, region forward or None) of every backend that runs here."""
    found = {}
    for limit in LIMITS:
        found[f"xla {limit // 2**20} MiB"] = tuple(
            functools.partial(fn, limit=limit) for fn in (xla.forward, xla.backward, region_xla.forward)
        )
    if jax.default_backend() == "tpu" and pallas_tpu.refuses(inputs) is None:
        found["pallas_tpu"] = (pallas_tpu.forward, pallas_tpu.backward, region_pallas.forward)
    if cudnn.refuses(inputs) is None:
        found["cudnn"] = (cudnn.forward, cudnn.backward, None)
    return found


def measure(inputs: Inputs, repeats: int) -> dict:
    """One shape through all backends."""
    b, t, n, h = inputs.q.shape
    scale = h**-0.5
    sets = jnp.full((b, 8, t), 1 / t, jnp.float32)
    regions = jnp.broadcast_to(jnp.arange(t) % 8 == jnp.arange(8)[:, None], (b, 8, t))
    rows = {}
    for name, (forward, backward, region) in backends(inputs).items():

        def both(inputs, forward=forward, backward=backward):
            out, lse = forward(inputs, scale=scale)
            return backward(inputs, lse, lse, out, scale=scale)

        row = {"forward": timed(lambda i, f=forward: f(i, scale=scale), (inputs,), repeats)}
        row["forward"]["tflops"] = round(4 * b * n * t * t * h / row["forward"]["ms"] / 1e9, 4)
        row["forward and backward"] = timed(both, (inputs,), repeats)
        if region is not None:
            lse = forward(inputs, scale=scale)[1]
            call = region_xla.Call(inputs, sets, regions, lse)
            row["region attention"] = timed(lambda c, f=region: f(c, scale=scale), (call,), repeats)
        rows[name] = row
    return rows


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    unknown = set(given.shapes) - set(SHAPES)
    if unknown:
        raise InputError(f"--shapes {', '.join(sorted(unknown))}: choose among {', '.join(SHAPES)}")
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    report = {
        "device": device.device_kind if device.platform != "cpu" else f"{platform.machine()} CPU",
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "dtype": jnp.dtype(dtype).name,
        "load": round(os.getloadavg()[0], 1),
        "shapes": {},
    }
    for family in given.shapes:
        for name, (shape, segmented) in SHAPES[family].items():
            rows = measure(make(shape, segmented, dtype), given.repeats)
            report["shapes"][f"{family}: {name}"] = {"B, T, N, K, H": shape, "backends": rows}
    text = json.dumps(report, indent=1)
    if not given.out:
        print(text)
        return
    with open(given.out, "w", encoding="utf-8") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
