"""The config of `editor_sft` and `editor_vae` as checked, frozen settings, and what both load."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spatialreward_jax.data.edit_pairs import PairSize, read_pairs
from spatialreward_jax.data.mixing import Mixture, Rows
from spatialreward_jax.editor.nets import PARTS, EditorNets, load_nets, read_configs
from spatialreward_jax.editor.prompts import MAX_TOKENS, negative_turn
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Guidance, SamplerPreset
from spatialreward_jax.io.peft import LoRASpec
from spatialreward_jax.recipes.checks import check_adapter, check_dtype
from spatialreward_jax.recipes.optimizing import Optimizing

NETS = ("transformer", "text")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields of `configs/editor_sft.py`; those of `data`, `lora` and `eval` stand flat (see `from_config`)."""

    editor: str
    adapter: str
    adapter_alpha: float
    scratch: tuple[str, ...]
    train: tuple[str, ...]
    dtype: str
    export_dtype: str
    seed: int
    steps: int
    batch: int
    kl_weight: float
    optimizing: Optimizing
    lora: LoRASpec | None
    data: str
    heldout: str
    rows: int
    check: str
    threads: int
    input_pixels: tuple[int, ...]
    output_pixels: int
    max_side: int
    max_text_tokens: int
    drop_text: float
    drop_references: float
    dropped: tuple[str, ...]
    eval_batches: int
    eval_pictures: int
    sampler: SamplerPreset

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Reads and checks a config. Raises InputError for a value that cannot be."""
        data, lora, e = config.data, config.lora, config.eval
        names = [f.name for f in dataclasses.fields(cls)]
        flat = {name: config[name] for name in names[: names.index("optimizing")]}
        settings = cls(
            **{name: tuple(value) if isinstance(value, list | tuple) else value for name, value in flat.items()},
            optimizing=Optimizing.from_config(config),
            lora=LoRASpec(lora.rank, lora.alpha, tuple(lora.targets)) if lora.rank else None,
            data=data.path,
            heldout=data.heldout,
            rows=data.rows,
            check=data.check,
            threads=data.threads,
            input_pixels=tuple(data.input_pixels),
            output_pixels=data.output_pixels,
            max_side=data.max_side,
            max_text_tokens=data.max_text_tokens,
            drop_text=data.drop_text,
            drop_references=data.drop_references,
            dropped=tuple(data.dropped),
            eval_batches=e.batches,
            eval_pictures=e.pictures,
            sampler=SamplerPreset(
                e.sampler_steps, Guidance(e.text_guidance, e.image_guidance), e.base, 0.0, e.negative
            ),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.editor:
            raise InputError("no editor: give --config.editor=FOLDER in the OmniGen2 layout, or 'embedded'")
        if not self.data:
            raise InputError("no data: give --config.data.path=FILE.jsonl whose rows name output_image, or 'editworld'")
        if not set(self.scratch) <= set(PARTS):
            raise InputError(f"scratch={self.scratch}: name parts among {', '.join(PARTS)}")
        if not self.train or not set(self.train) <= set(NETS):
            raise InputError(f"train={self.train}: name at least one of {', '.join(NETS)}")
        if self.lora and self.train != ("transformer",):
            raise InputError(f"train={self.train} with LoRA: adapters are for the transformer alone; set lora.rank=0")
        check_adapter(self.adapter, self.lora)
        check_dtype("export_dtype", self.export_dtype)
        if self.dtype:
            check_dtype("dtype", self.dtype)
        if not 1 <= self.max_text_tokens <= MAX_TOKENS:
            raise InputError(f"max_text_tokens={self.max_text_tokens}: use 1 to {MAX_TOKENS}")
        if not (0 <= self.drop_text <= 1 and 0 <= self.drop_references <= 1) or not self.dropped:
            raise InputError("drop_text and drop_references are shares of 0..1, and `dropped` names at least one turn")
        for name in (*self.dropped, self.sampler.negative):
            negative_turn(name)
        if min(self.batch, self.threads, self.sampler.steps) < 1 or min(self.eval_batches, self.eval_pictures) < 0:
            raise InputError(
                "batch, data.threads and eval.sampler_steps must be at least 1, eval.batches and .pictures at least 0"
            )
        if not self.input_pixels or min(*self.input_pixels, self.output_pixels, self.max_side) < 1:
            raise InputError("data: input_pixels names at least one limit; limits of pixels are at least 1")

    def load_nets(self, mesh: jax.sharding.Mesh) -> EditorNets:
        """The editor, parts in `scratch` drawn from the seed. Raises InputError."""
        seeds = tuple((part, self.seed) for part in self.scratch)
        dtype = jnp.dtype(self.dtype) if self.dtype else None
        adapter, alpha = self.adapter or None, self.adapter_alpha or None
        return load_nets(self.editor, adapter=adapter, alpha=alpha, dtype=dtype, mesh=mesh, scratch=seeds)

    def pairs(self, *, exact: bool = False) -> tuple[Rows, Rows | None]:
        """(training rows, held-out rows or None); `exact`: a batch holds images of one size. Raises InputError."""
        size = PairSize(self.input_pixels, self.output_pixels, self.max_side, read_configs(self.editor).multiple)
        read = lambda path, split, rows: read_pairs(path, split, rows, size, check=self.check, exact=exact)
        heldout = "editworld" if self.data == "editworld" and not self.heldout else self.heldout
        wanted = max(self.eval_batches * self.batch, self.eval_pictures)
        return (
            read(self.data, "train", self.rows),
            read(heldout, "validation", 2 * wanted) if heldout and wanted else None,
        )

    def mixture(self, rows: Rows, count: int, batch: int) -> Mixture:
        """`count` batches of these rows."""
        return Mixture({"pairs": rows}, {"pairs": 1.0}, batch, count, self.seed)
