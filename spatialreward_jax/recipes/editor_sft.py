"""Supervised training of the editor: rectified-flow matching of the OmniGen2 transformer, LoRA or all parameters, with
the text tower where the config says so.

Facts of the official training (`VectorSpaceLab/OmniGen2`, `train.py`, `omnigen2_train_dataset.py`): v = data - noise,
logistic-normal times shifted by the image's tokens, squared error averaged over all real elements of the batch, latents
sampled from the posterior; the text is left out with a small probability, and then the references half of the time, so
that all three guidance branches are trained.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from spatialreward_jax.data.edit_pairs import EditPair
from spatialreward_jax.data.mixing import Rows, mixed_batches
from spatialreward_jax.editor import encode as encoding
from spatialreward_jax.editor import prompts
from spatialreward_jax.editor.editor import Editor
from spatialreward_jax.editor.export import with_params, write_editor
from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.editor.velocity import velocity_fn
from spatialreward_jax.flow import matching_error, sample_times
from spatialreward_jax.io.peft import write_diffusers, write_peft
from spatialreward_jax.mesh import place_batch
from spatialreward_jax.models import omnigen2
from spatialreward_jax.models.omnigen2 import Conditioning, pack_images, pack_references
from spatialreward_jax.recipes.editor_settings import Settings
from spatialreward_jax.recipes.optimizing import Updates, add_metrics, start_state
from spatialreward_jax.recipes.task import HELDOUT, Batches, Evaluator, History
from spatialreward_jax.reporting.report import Chart
from spatialreward_jax.reporting.tensorboard import image_grid
from spatialreward_jax.rl import Mean, TrainState

CHARTS = (
    Chart("Loss", {"training": "loss", "held out": "heldout/loss"}),
    Chart("Loss by time", {"noisy half": "heldout/loss_noisy", "clean half": "heldout/loss_clean"}),
    Chart("PSNR of held-out edits to their targets (dB)", {"edits": "edits/psnr"}),
    Chart("Gradient norm", {"before clipping": "grad_norm"}),
)


class HostBatch(NamedTuple):
    """B edits on the host: the text turn of each, whether it shows its references, images, and keys to draw with."""

    turns: list[tuple[str, str]]
    shown: np.ndarray
    pairs: list[EditPair]
    keys: np.ndarray


class FlowBatch(NamedTuple):
    """B edits on the devices.

    tokens, mask: of the texts [B, L]. refs, ref_sizes: as in `Conditioning`. data: packed target latents [B, T, C].
    sizes: of the targets [B, 2], in patches.
    """

    tokens: jax.Array
    mask: jax.Array
    refs: jax.Array
    ref_sizes: jax.Array
    data: jax.Array
    sizes: jax.Array


def host_batch(settings: Settings, number: int, pairs: list[EditPair], *, drop: bool = True) -> HostBatch:
    """Draws which texts and references are left out; the same for the same seed and batch number."""
    rng = np.random.default_rng([settings.seed, 3, number])
    without = (rng.uniform(size=len(pairs)) < settings.drop_text) & drop
    alone = without & (rng.uniform(size=len(pairs)) < settings.drop_references)
    named = rng.integers(len(settings.dropped), size=len(pairs))
    turns = [
        prompts.negative_turn(settings.dropped[n]) if gone else turn
        for gone, n, turn in zip(without, named, prompts.edit_turns([pair.instruction for pair in pairs]))
    ]
    return HostBatch(turns, ~alone, pairs, rng.integers(2**31, size=len(pairs)))


def encode_batch(nets: EditorNets, batch: HostBatch, max_tokens: int) -> FlowBatch:
    """Tokenises, encodes all images (posterior samples), packs and pads."""
    tokens, mask = prompts.tokenize(nets.tokenizer, batch.turns, max_tokens=max_tokens)
    keys = jax.vmap(jax.random.key)(batch.keys)
    latents = encoding.encode_images(nets, [[*pair.sources, pair.target] for pair in batch.pairs], keys)
    patch, channels = nets.transformer.config.patch_size, nets.transformer.config.in_channels
    longest = lambda images: max((x.shape[0] * x.shape[1] // patch**2 for x in images), default=0)
    sources = [row[:-1] if shown else [] for row, shown in zip(latents, batch.shown)]
    # What is left out leaves no trace in the shapes, so that no program is compiled for it.
    slots = max(len(row) - 1 for row in latents)
    most = longest([x for row in latents for x in row[:-1]])
    refs, ref_sizes = pack_references(
        sources,
        channels=channels,
        slots=slots,
        tokens=encoding.TOKENS.fit(most, "source image") if most else 0,
        patch=patch,
    )
    targets = [row[-1] for row in latents]
    data, sizes = pack_images(targets, tokens=encoding.TOKENS.fit(longest(targets), "edited image"), patch=patch)
    encoding.check_positions(nets, np.concatenate([sizes, ref_sizes.reshape(-1, 2)]))
    return jax.tree.map(lambda x: place_batch(nets.mesh, x), FlowBatch(tokens, mask, refs, ref_sizes, data, sizes))


def make_loss(nets: EditorNets):
    """-> loss(params, frozen, batch, key), see `optimizing.Loss`.

    params and frozen together hold all nets by name: "transformer" (the base), "adapters" where there are some, "text".
    """
    graphs, text_graph, dtype = nets.transformer.graph, nets.text.graph, nets.dtype

    def loss(params: dict, frozen: dict, batch: FlowBatch, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        parts = {**frozen, **params}
        text = nnx.merge(text_graph, parts["text"])(batch.tokens, batch.mask)
        cond = Conditioning(text, batch.mask, batch.refs, batch.ref_sizes, batch.sizes)
        velocity = velocity_fn(graphs, parts.get("adapters"), parts["transformer"], dtype)
        for_time, for_noise = jax.random.split(key)
        t = sample_times(for_time, batch.sizes.prod(-1))
        noise = jax.random.normal(for_noise, batch.data.shape)
        real = cond.target_mask(batch.data.shape[1])[..., None]
        x = jnp.where(real, t[:, None, None] * batch.data + (1 - t)[:, None, None] * noise, 0)
        error = matching_error(velocity(x, t, cond), noise, batch.data)
        late = (t >= 0.5)[:, None, None]
        halves = {"loss_noisy": Mean.of(error, real & ~late), "loss_clean": Mean.of(error, real & late)}
        return Mean.of(error, real), halves

    return loss


class EditorSFT:
    """The task that `train.py` runs. See `recipes.task.Task` for the contract of each method."""

    def __init__(self, settings: Settings, nets: EditorNets, rows: Rows, heldout: Rows | None, workdir: pathlib.Path):
        """`nets` get new adapters where the settings ask for LoRA and they carry none."""
        self.settings, self.nets, self.workdir = settings, nets, workdir
        if settings.lora and nets.adapters is None:
            nets.add_adapters(settings.lora, settings.seed)
        s = settings
        self.mixture = s.mixture(rows, s.steps * s.optimizing.accumulate, s.batch)
        everything = {"transformer": nets.transformer.params, "text": nets.text.params}
        self.start = {name: everything[name] for name in s.train}
        if nets.adapters is not None:
            self.start, everything = {"adapters": nets.adapters}, everything | {"adapters": nets.adapters}
        self.frozen = {name: tree for name, tree in everything.items() if name not in self.start}
        self.updates = Updates(make_loss(nets), s.optimizing, steps=s.steps, seed=s.seed)
        self.charts = CHARTS
        self.evaluators: Mapping[str, Evaluator] = {}
        if heldout is not None and s.eval_batches:
            self.evaluators |= {"heldout": HeldoutLoss(self, heldout)}
        if heldout is not None and s.eval_pictures:
            self.evaluators |= {"edits": Pictures(self, heldout)}

    def init(self, key: Any) -> TrainState:
        """What is trained, in float32, and the optimiser's state."""
        del key  # scratch nets and adapters were drawn from the config's seed when the nets were made
        return start_state(self.start, self.updates.optimizer)

    def batches(self) -> Batches:
        """`accumulate` micro-batches at a time."""
        s = self.settings
        load = lambda number, name, pairs: host_batch(s, number, pairs)
        return mixed_batches(self.mixture, load, accumulate=s.optimizing.accumulate, threads=s.threads)

    def step(self, state: TrainState, batch: tuple[HostBatch, ...]) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        encoded = [encode_batch(self.nets, part, self.settings.max_text_tokens) for part in batch]
        with jax.set_mesh(self.nets.mesh):
            return self.updates(state, self.frozen, encoded)

    def record(self) -> dict[str, Any]:
        """Nothing: all that changes stands in the state."""
        return {}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Undoes `record`."""

    def summary(self, history: History) -> dict[str, Any]:
        """First and last losses, and what was written."""
        keys = {"loss_first": history.first.get("loss"), "loss_last": history.last.get("loss")}
        return keys | history.eval_last | {"exported": str(self.exported)}

    def export(self, state: TrainState) -> None:
        """Writes adapters as PEFT and diffusers files, or the whole editor's folder."""
        nets, folder = self.nets, self.exported
        if nets.adapters is None:
            write_editor(folder, nets, state.params, dtype=jnp.dtype(self.settings.export_dtype), vae_settings={})
            return
        write_peft(folder, state.params["adapters"], nets.spec, omnigen2.ENTRIES, base_model=self.settings.editor)
        write_diffusers(folder, state.params["adapters"], nets.spec, omnigen2.ENTRIES)

    @property
    def exported(self) -> pathlib.Path:
        """Folder that `export` writes."""
        return self.workdir / ("editor" if self.nets.adapters is None else "adapter")


class HeldoutLoss:
    """Evaluator: the loss on the first held-out rows, with fixed times and noise."""

    def __init__(self, task: EditorSFT, rows: Rows):
        self._task = task
        mixture = task.settings.mixture(rows, task.settings.eval_batches, task.settings.batch)
        self._batches = [mixture[number] for number in range(len(mixture))]

    def __call__(self, state: TrainState, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields ("loss", ...) and its two halves."""
        task, total = self._task, {}
        for number, _, pairs in self._batches:
            batch = host_batch(task.settings, HELDOUT - number, pairs, drop=False)
            encoded = encode_batch(task.nets, batch, task.settings.max_text_tokens)
            with jax.set_mesh(task.nets.mesh):
                found = task.updates.evaluate(state.params, task.frozen, encoded, HELDOUT - number)
            total = add_metrics(total, found)
        for name, mean in total.items():
            yield name, float(mean.value())


class Pictures:
    """Evaluator: source | edit | target of a few held-out rows at a fixed seed, and how far edits are from targets."""

    def __init__(self, task: EditorSFT, rows: Rows):
        self._task = task
        self._pairs = [rows[index] for index in range(min(task.settings.eval_pictures, len(rows.keys)))]

    def __call__(self, state: TrainState, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields the picture and ("psnr", decibels)."""
        task = self._task
        nets, preset = with_params(task.nets, state.params), task.settings.sampler
        keys = jax.random.split(jax.random.key(task.settings.seed), len(self._pairs))
        encoded = encoding.encode(
            nets,
            [pair.instruction for pair in self._pairs],
            [pair.sources for pair in self._pairs],
            [pair.target.shape[:2] for pair in self._pairs],
            negative=preset.negative,
            keys=keys,
            max_tokens=task.settings.max_text_tokens,
        )
        latents = Editor(nets).sample(encoded, keys[:, None], preset)
        edits = encoding.decode(nets, latents[:, 0], encoded.latent_sizes)
        yield "pictures", image_grid([[*p.sources, e, p.target] for p, e in zip(self._pairs, edits)])
        yield "psnr", float(np.mean([psnr(e, p.target) for p, e in zip(self._pairs, edits)]))


def psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in decibels, at most 99."""
    error = float(np.mean(np.square(image.astype(np.float64) - wanted)))
    return min(99.0, 10 * np.log10(255**2 / max(error, 1e-6)))


def make_task(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> EditorSFT:
    """The task of a config.

    Raises:
      InputError: a config value, the data or the editor is not as it should be.
    """
    settings = Settings.from_config(config)
    rows = settings.pairs()
    return EditorSFT(settings, settings.load_nets(mesh), *rows, workdir)
