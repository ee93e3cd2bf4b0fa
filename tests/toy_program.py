"""A task that needs no net, and a program that trains it: `python toy_program.py --config=FILE --workdir=DIR`."""

import os
import signal
import sys
import time
import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from spatialreward_jax import cli, recipes, train
from spatialreward_jax.reporting.report import Chart
from spatialreward_jax.rl.metrics import Mean

OPTIMIZER = optax.adam(0.1)


@jax.jit
def _step(state, batch):
    key = jax.random.fold_in(state["key"], state["step"])

    def loss(params):
        noise = jax.random.normal(key, params["w"].shape)
        return ((params["w"] * (1 + 0.1 * noise) - batch[:, None]) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = OPTIMIZER.update(grads, state["opt"])
    params = optax.apply_updates(state["params"], updates)
    return state | {"params": params, "opt": opt, "step": state["step"] + 1}, value


class Toy:
    """Fits a vector to shuffled numbers, with noise. `hook(count)` is called in every step."""

    def __init__(self, hook=lambda count: None, mesh=None):
        self.hook, self.mesh, self.calls, self.exported = hook, mesh, 0, None
        self.evaluators = {"toy": self._evaluate}
        self.charts = (Chart("Loss", {"loss": "loss", "absent": "nowhere"}),)

    def init(self, key):
        def make(key):
            params = {"w": jax.random.normal(key, (8,))}
            return {"params": params, "opt": OPTIMIZER.init(params), "key": key, "step": jnp.int32(0)}

        place = None if self.mesh is None else jax.NamedSharding(self.mesh, jax.P())
        return jax.jit(make, out_shardings=place)(key)

    def batches(self):
        rows = grain.MapDataset.range(7).seed(3).shuffle().slice(slice(0, 6)).repeat().batch(2)
        share = rows.map(lambda x: x.astype(np.float32))
        return iter(share.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))

    def step(self, state, batch):
        self.calls += 1
        state, loss = _step(state, batch)
        extra = self.hook(self.calls)
        metrics = {"loss": loss, "reward": Mean(loss, jnp.float32(2)), "nothing": Mean(jnp.float32(0), jnp.float32(0))}
        return state, metrics | (extra or {})

    def _evaluate(self, state, step):
        yield "mean", state["params"]["w"].mean()
        yield "picture", np.zeros((4, 4, 3), np.uint8)

    def record(self):
        return {"calls": self.calls}

    def restore_record(self, record):
        self.calls = record["calls"]

    def export(self, state):
        self.exported = jax.tree.map(np.asarray, state["params"])

    def summary(self, history):
        return {"reward_first": history.first["reward"], "reward_last": history.last["reward"], "calls": self.calls,
                "loss_mean": history.mean("loss"), "eval": [history.eval_first, history.eval_last]}  # fmt: skip


def make_task(config, mesh, workdir):
    """The recipe's entry."""

    def hook(count):
        time.sleep(config.sleep)
        if config.kill_at == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return Toy(hook, mesh)


if __name__ == "__main__":
    sys.modules["toy_recipe"] = types.ModuleType("toy_recipe")
    sys.modules["toy_recipe"].make_task = make_task
    recipes.RECIPES["toy"] = "toy_recipe"
    train.define_flags()
    cli.run(train.main)
