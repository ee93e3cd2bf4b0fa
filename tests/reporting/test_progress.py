import json

import jax
import jax.numpy as jnp
import numpy as np

from spatialreward_jax.reporting import progress


class _Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_line_with_time_left_and_rate_limit():
    said, clock = [], _Time()
    bar = progress.Progress(100, start=10, say=said.append, every=5.0, clock=clock)
    for step in range(11, 101):
        clock.now += 2.0
        bar.step(step, {"reward": 0.5, "loss": -1.25e-5})
    assert said[0].startswith("step 11/100  reward 0.5  loss -1.25e-05  2 s/step  ETA 2 min 58 s")
    assert said[-1].startswith("step 100/100") and "ETA 0 s" in said[-1]
    assert 90 * 2 / 6 <= len(said) <= 32 and bar.seconds_per_step() == 2.0


def test_compilation_is_counted_and_left_out_of_the_estimate():
    clock = progress.compile_clock()
    before = clock.seconds, clock.programs
    jax.jit(lambda x: jnp.sin(x) * 17.25)(jnp.ones(3)).block_until_ready()
    assert clock.seconds > before[0] and clock.programs > before[1]
    said, now = [], _Time()
    bar = progress.Progress(3, say=said.append, clock=now)
    clock("/jax/core/compile/backend_compile_duration", 50.0, fun_name="f")
    now.now = 51.0
    bar.step(1, {})
    assert "1 s/step  ETA 2 s" in said[0] and "compiled" in said[0]
    bar.step(3, {})
    assert "compiled" not in said[1]
    clock.seconds -= 50.0


def test_durations():
    assert [progress.duration(s) for s in (0, 59.4, 61, 7800)] == ["0 s", "59 s", "1 min 01 s", "2 h 10 min"]


def test_json_is_valid_whatever_comes(tmp_path):
    values = {"a": np.float32(1.5), "b": float("nan"), "c": [np.arange(2), None], "d": {"e": jnp.float32(2)}, "f": True}
    progress.write_json(tmp_path / "summary.json", values)
    want = {"a": 1.5, "b": None, "c": [[0, 1], None], "d": {"e": 2.0}, "f": True}
    assert json.loads((tmp_path / "summary.json").read_text()) == want
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
