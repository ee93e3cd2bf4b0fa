"""Training of the editor's autoencoder: absolute error of the reconstruction plus a weighted KL term.

Meant for small autoencoders that are trained from scratch. At the end the mean and the standard deviation of its
latents become `shift_factor` and `scaling_factor` of its config.json, so that the flow works at unit scale.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from spatialreward_jax.data.edit_pairs import EditPair
from spatialreward_jax.data.mixing import Rows, mixed_batches
from spatialreward_jax.editor.export import write_editor
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.errors import InputError
from spatialreward_jax.mesh import place_batch
from spatialreward_jax.models.autoencoder_kl import sample_posterior
from spatialreward_jax.recipes.editor_settings import Settings
from spatialreward_jax.recipes.optimizing import Updates, add_metrics, start_state
from spatialreward_jax.recipes.task import HELDOUT, Batches, Evaluator, History
from spatialreward_jax.reporting.report import Chart
from spatialreward_jax.reporting.tensorboard import image_grid
from spatialreward_jax.rl import Mean, TrainState

CHARTS = (
    Chart("Mean absolute error", {"training": "absolute", "held out": "heldout/absolute"}),
    Chart("PSNR (dB)", {"training": "psnr", "held out": "heldout/psnr"}),
    Chart("KL of a latent element", {"training": "kl"}),
)

MEASURED = 8
"""Batches over which the latents' mean and standard deviation are taken."""


def stack_images(pairs: list[EditPair]) -> np.ndarray:
    """uint8 [B, H, W, 3]: the targets, and the sources too where all have the targets' size."""
    sources = [source for pair in pairs for source in pair.sources]
    targets = [pair.target for pair in pairs]
    same = all(source.shape == targets[0].shape for source in sources)
    return np.stack([*targets, *sources] if same else targets)


def make_loss(graph: nnx.GraphDef, kl_weight: float):
    """-> loss(params, frozen, images, key), see `optimizing.Loss`: per image, mean |error| of pixels in -1..1 plus
    `kl_weight` times the mean KL divergence of a latent element from a standard normal."""

    def loss(params: dict, frozen: dict, images: jax.Array, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        vae = nnx.merge(graph, params["vae"])
        wanted = images.astype(jnp.float32) / 127.5 - 1
        mean, logvar = vae.encode(wanted)
        out = vae.decode(sample_posterior(mean, logvar, jax.random.normal(key, mean.shape)))
        average = lambda x: x.mean(axis=(1, 2, 3))
        error, square = average(jnp.abs(out - wanted)), average(jnp.square(out - wanted))
        kl = average(0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar))
        metrics = {"absolute": error, "kl": kl, "psnr": 10 * jnp.log10(4 / jnp.maximum(square, 1e-9))}
        return Mean.of(error + kl_weight * kl, 1.0), {name: Mean.of(x, 1.0) for name, x in metrics.items()}

    return loss


class EditorVAE:
    """The task that `train.py` runs. See `recipes.task.Task` for the contract of each method."""

    def __init__(self, settings: Settings, nets: EditorNets, rows: Rows, heldout: Rows | None, workdir: pathlib.Path):
        s = settings
        self.settings, self.nets, self.workdir = s, nets, workdir
        self.mixture = s.mixture(rows, s.steps * s.optimizing.accumulate, s.batch)
        self.updates = Updates(make_loss(nets.vae.graph, s.kl_weight), s.optimizing, steps=s.steps, seed=s.seed)
        self.latents: dict[str, float] = {}
        self.moments = jax.jit(self._moments)
        self.charts = CHARTS
        self.evaluators: Mapping[str, Evaluator] = {}
        if heldout is not None and s.eval_batches:
            self.evaluators |= {"heldout": Reconstruction(self, heldout)}

    def init(self, key: Any) -> TrainState:
        """The autoencoder and the optimiser's state."""
        del key  # a scratch net was drawn from the config's seed when the nets were made
        return start_state({"vae": self.nets.vae.params}, self.updates.optimizer)

    def batches(self) -> Batches:
        """`accumulate` micro-batches at a time."""
        load = lambda number, name, pairs: stack_images(pairs)
        many = self.settings.optimizing.accumulate
        return mixed_batches(self.mixture, load, accumulate=many, threads=self.settings.threads)

    def step(self, state: TrainState, batch: tuple[np.ndarray, ...]) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        placed = [place_batch(self.nets.mesh, images) for images in batch]
        with jax.set_mesh(self.nets.mesh):
            return self.updates(state, {}, placed)

    def record(self) -> dict[str, Any]:
        """Nothing: all that changes stands in the state."""
        return {}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Undoes `record`."""

    def export(self, state: TrainState) -> None:
        """Writes the whole editor's folder, with the measured shift and scale of the latents."""
        total = np.zeros(3)
        for number in range(min(MEASURED, len(self.mixture))):
            images = place_batch(self.nets.mesh, stack_images(self.mixture[number][2]))
            sums = self.moments(state.params["vae"], images, np.int32(number))
            total += np.array(jax.device_get(sums), np.float64)
        mean = total[0] / total[2]
        std = float(np.sqrt(total[1] / total[2] - mean**2))
        self.latents = {"shift_factor": round(float(mean), 4), "scaling_factor": round(1 / std, 4)}
        dtype = jnp.dtype(self.settings.export_dtype)
        write_editor(self.exported, self.nets, state.params, dtype=dtype, vae_settings=self.latents)

    def _moments(self, params: Any, images: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        key = jax.random.fold_in(jax.random.key(self.settings.seed), number)
        mean, logvar = nnx.merge(self.nets.vae.graph, params).encode(images.astype(jnp.float32) / 127.5 - 1)
        z = sample_posterior(mean, logvar, jax.random.normal(key, mean.shape))
        return z.sum(), jnp.square(z).sum(), z.size

    def summary(self, history: History) -> dict[str, Any]:
        """Losses, the latents' figures, and what was written."""
        keys = {"loss_first": history.first.get("loss"), "loss_last": history.last.get("loss")}
        return keys | history.eval_last | self.latents | {"exported": str(self.exported)}

    @property
    def exported(self) -> pathlib.Path:
        """Folder that `export` writes."""
        return self.workdir / "editor"


class Reconstruction:
    """Evaluator: the loss and its parts on held-out images, and original | reconstruction."""

    def __init__(self, task: EditorVAE, rows: Rows):
        self._task = task
        mixture = task.settings.mixture(rows, task.settings.eval_batches, task.settings.batch)
        self._images = [stack_images(mixture[number][2]) for number in range(len(mixture))]
        self._decode = jax.jit(self._reconstruct)

    def _reconstruct(self, params: Any, images: jax.Array) -> jax.Array:
        vae = nnx.merge(self._task.nets.vae.graph, params)
        out = vae.decode(vae.encode(images.astype(jnp.float32) / 127.5 - 1)[0])
        return jnp.round(jnp.clip(out / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)

    def __call__(self, state: TrainState, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields the numbers, then the picture."""
        task, total = self._task, {}
        with jax.set_mesh(task.nets.mesh):
            for number, images in enumerate(self._images):
                placed = place_batch(task.nets.mesh, images)
                total = add_metrics(total, task.updates.evaluate(state.params, {}, placed, HELDOUT - number))
            shown = self._images[0][: task.settings.eval_pictures]
            out = self._decode(state.params["vae"], shown) if len(shown) else ()
        for name, mean in total.items():
            yield name, float(mean.value())
        if len(shown):
            yield "pictures", image_grid([[a, b] for a, b in zip(shown, np.asarray(out))])


def make_task(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> EditorVAE:
    """The task of a config.

    Raises:
      InputError: a config value, the data or the editor is not as it should be.
    """
    settings = Settings.from_config(config)
    if settings.lora:
        raise InputError("the autoencoder trains all its parameters: set lora.rank=0")
    rows = settings.pairs(exact=True)
    return EditorVAE(settings, settings.load_nets(mesh), *rows, workdir)
