"""The config of `reward_sft` as checked, frozen settings."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from spatialreward_jax.data.editworld.candidates import FAILURES
from spatialreward_jax.data.editworld.vocabulary import SIDES
from spatialreward_jax.data.lessons import OWN_LESSONS
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.recipes.checks import check_adapter, check_dtype
from spatialreward_jax.recipes.optimizing import Optimizing
from spatialreward_jax.reward.pixels import pixel_policy
from spatialreward_jax.reward.templates import Templates, load_templates


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields of `configs/reward_sft.py`; those of `data`, `lora` and `eval` stand flat (see `from_config`)."""

    judge: str
    adapter: str
    scratch: bool
    dtype: str
    export_dtype: str
    templates: str
    pixels: str
    max_new_tokens: int
    seed: int
    steps: int
    batch: int
    optimizing: Optimizing
    lora: LoRASpec | None
    data: str
    heldout: str
    max_tokens: int
    threads: int
    edits: int
    candidates: int
    sides: tuple[int, ...]
    failures: Mapping[str, float]
    own_edits: tuple[str, ...]
    boxes: bool
    cited: bool
    shares: Mapping[str, float]
    eval_batches: int
    eval_edits: int
    eval_grounding: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Reads and checks a config. Raises InputError for a value that cannot be."""
        data, lora, world = config.data, config.lora, config.data.editworld
        names = [f.name for f in dataclasses.fields(cls)]
        settings = cls(
            **{name: config[name] for name in names[: names.index("optimizing")]},
            optimizing=Optimizing.from_config(config),
            lora=LoRASpec(lora.rank, lora.alpha, tuple(lora.targets), lora.dropout) if lora.rank else None,
            data=data.path,
            heldout=data.heldout,
            max_tokens=data.max_tokens,
            threads=data.threads,
            edits=world.edits,
            candidates=world.candidates,
            sides=tuple(world.sides),
            failures=world.failures.to_dict(),
            own_edits=tuple(world.own_edits),
            boxes=world.boxes,
            cited=world.cited,
            shares=_shares(world.mixture) if data.path == "editworld" else {"rows": 1.0},
            eval_batches=config.eval.batches,
            eval_edits=config.eval.edits,
            eval_grounding=config.eval.grounding,
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.judge:
            raise InputError("no judge: give --config.judge=FOLDER in the Qwen3-VL layout, or 'embedded'")
        if not self.data:
            raise InputError("no data: give --config.data.path=FILE.jsonl of chats, or 'editworld'")
        if min(self.batch, self.edits, self.candidates, self.max_tokens, self.max_new_tokens, self.threads) < 1:
            raise InputError("batch, edits, candidates, max_tokens, max_new_tokens and threads must be at least 1")
        if self.cited and not self.boxes:
            raise InputError("data.editworld.cited=True cites boxes: set cited=False too, or boxes=True")
        if not self.sides or not set(self.sides) <= set(SIDES):
            raise InputError(f"data.editworld.sides={self.sides}: name sides among {', '.join(map(str, SIDES))}")
        weights = self.failures.values()
        if not set(self.failures) <= set(FAILURES) or not any(weights) or min(weights) < 0:
            raise InputError(
                f"data.editworld.failures={self.failures}: give weights of at least 0, not all 0, to "
                f"{', '.join(FAILURES)}"
            )
        if bool(self.own_edits) != any(self.shares.get(name) for name in OWN_LESSONS):
            raise InputError(
                f"data.editworld.own_edits={self.own_edits} and the shares of {' and '.join(OWN_LESSONS)} in its "
                "mixture go together, with data.path=editworld: give both or none"
            )
        if min(self.eval_batches, self.eval_edits, self.eval_grounding) < 0:
            raise InputError("eval: batches, edits and grounding must be at least 0")
        if self.scratch and self.lora:
            raise InputError("scratch trains all parameters: set lora.rank=0, or scratch=False")
        if self.optimizing.muon_lr and self.lora:
            raise InputError("muon_lr trains whole kernels: set lora.rank=0, or muon_lr=0")
        check_adapter(self.adapter, self.lora)
        check_dtype("export_dtype", self.export_dtype)
        if self.dtype:
            check_dtype("dtype", self.dtype)
        pixel_policy(self.pixels)
        self.load_templates()

    def load_templates(self) -> Templates:
        """The wording of EditWorld's questions. Raises InputError."""
        return load_templates(self.templates)


def _shares(mixture: ConfigDict) -> dict[str, float]:
    """Those of the own edits are left out at 0: without own edits there are no such lessons."""
    return {name: share for name, share in mixture.items() if share or name not in OWN_LESSONS}
