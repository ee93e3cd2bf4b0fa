"""Supervised training of the judge: cross-entropy on the tokens of its answers, LoRA or all parameters.

A batch holds chats of one length bucket, or pictures of one size. EditWorld has four lessons: every shape of a picture,
every change between two, and the judge's own two questions (consistency and quality); a judge from scratch begins with
the first two. An editor's own edits, kept by RL runs, give the last two as well.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from spatialreward_jax.data.lessons import LESSONS, OWN_LESSONS
from spatialreward_jax.data.mixing import mixed_batches
from spatialreward_jax.io.peft import write_peft
from spatialreward_jax.io.pretrained import copy_companions, resolve
from spatialreward_jax.io.weights import matrices, save_params
from spatialreward_jax.mesh import place_batch
from spatialreward_jax.models import lora
from spatialreward_jax.models.qwen3_vl import entries, initial_positions
from spatialreward_jax.recipes.judge_evaluation import HeldoutAnswers, Verdicts
from spatialreward_jax.recipes.optimizing import Updates, start_state
from spatialreward_jax.recipes.reward_rows import RewardRows, read_rows
from spatialreward_jax.recipes.reward_settings import Settings
from spatialreward_jax.recipes.task import Batches, Evaluator, History
from spatialreward_jax.reporting.report import Chart
from spatialreward_jax.reward.chats import ChatRow
from spatialreward_jax.reward.judge import SETTINGS_FILE
from spatialreward_jax.reward.loading import JudgeNet, load_judge
from spatialreward_jax.reward.processor import Processor
from spatialreward_jax.reward.supervision import AnswerBatch, answer_loss, pack_chats
from spatialreward_jax.reward.templates import Templates
from spatialreward_jax.rl import Mean, TrainState

SOURCES = (*LESSONS, *OWN_LESSONS, "rows")
CHARTS = (
    Chart("Loss of an answer's tokens", {"training": "loss"}),
    Chart("Loss by lesson", {name: f"{name}/loss" for name in SOURCES}),
    Chart("Held-out token accuracy", {name: f"heldout/{name}/token_accuracy" for name in SOURCES}),
    Chart("Regions (IoU)", {"edits": "judge/region_iou", "grounding": "judge/grounding_iou"}),
    Chart("Verdicts", {"valid": "judge/valid", "pairs ranked right": "judge/pairwise_accuracy"}),
    Chart("Gradient norm", {"before clipping": "grad_norm"}),
)


class JudgeBatch:
    """One micro-batch on the host: the lesson's name and its arrays."""

    def __init__(self, name: str, arrays: AnswerBatch):
        self.name, self.arrays = name, arrays


def make_loss(net: JudgeNet):
    """-> loss(params, frozen, batch, key), see `optimizing.Loss`.

    params and frozen together hold "base" and, where there are some, "adapters". Dropout of adapters follows from the
    key; a key of None has none.
    """

    def loss(params: dict, frozen: dict, batch: AnswerBatch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        parts = {**frozen, **params}
        adapters = parts.get("adapters")
        dropout = key if adapters is not None else None
        model = lora.merge(net.graphs, adapters, parts["base"], dropout_key=dropout)
        error, hits = answer_loss(model, batch)
        return error, {"token_accuracy": hits}

    return loss


class RewardSFT:
    """The task that `train.py` runs. See `recipes.task.Task` for the contract of each method."""

    def __init__(
        self,
        settings: Settings,
        net: JudgeNet,
        processor: Processor,
        templates: Templates,
        rows: RewardRows,
        workdir: pathlib.Path,
    ):
        self.settings, self.net, self.processor, self.workdir = settings, net, processor, workdir
        self.templates = templates
        s = settings
        self.mixture = rows.training
        kernels = matrices(entries(net.config), net.base, "base.")
        self.updates = Updates(make_loss(net), s.optimizing, steps=s.steps, seed=s.seed, kernels=kernels)
        self.start = {"base": net.base} if net.adapters is None else {"adapters": net.adapters}
        self.frozen = {} if net.adapters is None else {"base": net.base}
        self.charts = CHARTS
        self.evaluators: Mapping[str, Evaluator] = {}
        if rows.heldout:
            self.evaluators |= {"heldout": HeldoutAnswers(self, rows.heldout)}
        if s.data == "editworld" and (s.eval_edits or s.eval_grounding):
            self.evaluators |= {"judge": Verdicts(self)}

    # ---- the contract with the loop

    def init(self, key: Any) -> TrainState:
        """What is trained, in float32, and the optimiser's state."""
        del key  # a scratch net and adapters were drawn from the config's seed when the net was made
        return start_state(self.start, self.updates.optimizer)

    def batches(self) -> Batches:
        """`accumulate` micro-batches at a time."""
        s = self.settings
        load = lambda number, name, rows: JudgeBatch(name, self.pack(rows))
        return mixed_batches(self.mixture, load, accumulate=s.optimizing.accumulate, threads=s.threads)

    def pack(self, rows: list[ChatRow]) -> AnswerBatch:
        """Rows -> padded host arrays."""
        return pack_chats(rows, self.processor, side=self.net.config.vision.side)

    def placed(self, batch: AnswerBatch) -> AnswerBatch:
        """Host arrays on the mesh, split over rows where they divide."""
        return jax.tree.map(lambda leaf: place_batch(self.net.mesh, leaf), batch)

    def step(self, state: TrainState, batch: tuple[JudgeBatch, ...]) -> tuple[TrainState, dict[str, Any]]:
        """One update."""
        with jax.set_mesh(self.net.mesh):
            state, metrics = self.updates(state, self.frozen, [self.placed(part.arrays) for part in batch])
        lessons = {part.name for part in batch}
        if len(lessons) == 1 and len(self.mixture.sources) > 1:  # each lesson has a curve of its own
            metrics |= {f"{lesson}/{name}": metrics[name] for lesson in lessons for name in ("loss", "token_accuracy")}
        return state, metrics

    def record(self) -> dict[str, Any]:
        """Nothing: all that changes stands in the state."""
        return {}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Undoes `record`."""

    def summary(self, history: History) -> dict[str, Any]:
        """First and last losses, evaluations, and what was written."""
        keys = {"loss_first": history.first.get("loss"), "loss_last": history.last.get("loss")}
        return keys | history.eval_last | {"exported": str(self.exported)}

    def export(self, state: TrainState) -> None:
        """Writes a PEFT adapter, or the judge's whole folder."""
        net, folder = self.net, self.exported
        if net.adapters is not None:
            write_peft(folder, state.params["adapters"], net.spec, entries(net.config), base_model=self.settings.judge)
            return
        if jax.process_index() == 0:
            copy_companions(net.folder, folder)
            own = {"templates": self.settings.templates, "max_new_tokens": self.settings.max_new_tokens}
            file = folder / SETTINGS_FILE
            before = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(before | own) + "\n")
        dtype = jnp.dtype(self.settings.export_dtype)
        save_params(folder, state.params["base"], entries(net.config), dtype=dtype)

    @property
    def exported(self) -> pathlib.Path:
        """Folder that `export` writes."""
        return self.workdir / ("judge" if self.net.adapters is None else "adapter")

    def trained(self, state: TrainState) -> JudgeNet:
        """The net with the state's parameters."""
        return dataclasses.replace(self.net, **state.params)


def load_net(settings: Settings, mesh: jax.sharding.Mesh) -> JudgeNet:
    """The judge that training begins with: read or drawn from the seed, with new adapters where LoRA is asked for.

    Raises InputError.
    """
    s = settings
    net = load_judge(
        resolve(s.judge, "judge"),
        adapter=s.adapter or None,
        dtype=jnp.dtype(s.dtype) if s.dtype else None,
        mesh=mesh,
        scratch=s.seed if s.scratch else None,
    )
    if s.scratch:
        table = net.base["vision"]["positions"]["table"]
        start = initial_positions(net.config.vision).astype(table.dtype)
        net.base["vision"]["positions"]["table"] = jax.device_put(start, table.sharding)
    if s.lora and net.adapters is None:
        graphs, adapters = lora.new_adapters(net.graphs.plain, net.base, entries(net.config), s.lora, s.seed)
        adapters = jax.device_put(adapters, NamedSharding(mesh, PartitionSpec()))
        net = dataclasses.replace(net, graphs=graphs, adapters=adapters, spec=s.lora)
    return net


def make_task(config: ConfigDict, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> RewardSFT:
    """The task of a config.

    Raises:
      InputError: a config value, the data or the judge is not as it should be.
    """
    settings = Settings.from_config(config)
    processor, templates = Processor(resolve(settings.judge, "judge"), settings.pixels), settings.load_templates()
    rows = read_rows(settings, processor, templates)
    return RewardSFT(settings, load_net(settings, mesh), processor, templates, rows, workdir)
