"""The flags by which programs describe their judge, and the judge that they describe.

A program that wants them in its --help adopts them: `flags.adopt_module_key_flags(judge_flags)`.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from spatialreward_jax.io.int8 import FORMATS
from spatialreward_jax.reward.aggregate import KINDS
from spatialreward_jax.reward.parsing import MODES
from spatialreward_jax.reward.pixels import POLICIES
from spatialreward_jax.reward.types import SCORE_MODES

if TYPE_CHECKING:
    from spatialreward_jax.reward.judge import RewardModel


def define(model: str) -> None:
    """Defines them. model: the judge where none is named, "" for none."""
    flags.DEFINE_string("model", model, "The judge: a folder in Hugging Face layout, or embedded.")
    flags.DEFINE_string("adapter", "", "PEFT folder to put on the judge.")
    flags.DEFINE_enum("quantize", None, FORMATS, "Weights of the judge's linear layers in fewer bits.")
    flags.DEFINE_string("templates", "", "Wording of the questions: a shipped set or an imported folder.")
    flags.DEFINE_enum("pixel_policy", "eval", list(POLICIES), "How large images reach the judge.")
    flags.DEFINE_enum("parsing", "strict", MODES, "How the judge's texts are read.")
    flags.DEFINE_enum("aggregation", "weighted", KINDS, "How sub-scores become one score.")
    flags.DEFINE_integer("max_new_tokens", 0, "Longest answer; 0: what the judge's folder says.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "Edits that are scored at a time.", lower_bound=1)
    define_writing()
    define_mesh()


WRITING = ("constrained", "score_mode", "temperature", "ensemble")
"""Names of the flags that `define_writing` defines."""


def define_writing() -> None:
    """Defines how the judge writes."""
    flags.DEFINE_bool("constrained", False, "Let the judge write readable answers only, by a grammar.")
    flags.DEFINE_enum(
        "score_mode", "answered", SCORE_MODES, "Scores as written, or (fewer ties) as means; needs --constrained."
    )
    flags.DEFINE_float("temperature", 0.0, "Of the judge's answers; 0 is greedy.", lower_bound=0.0)
    flags.DEFINE_integer(
        "ensemble", 1, "Answers drawn for each question and averaged; above 1 needs --temperature.", lower_bound=1
    )


def writing(given: flags.FlagValues) -> dict[str, Any]:
    """How the judge writes, as `RewardModel.from_pretrained` takes it: the values of `WRITING` by name."""
    return {name: given[name].value for name in WRITING}


def define_mesh() -> None:
    """Defines --mesh, of a program that is content with one device; `mesh.mesh_of` makes it."""
    flags.DEFINE_string("mesh", "", "Axes data,fsdp,tensor over all devices, see README; by default the first device.")


def load(given: flags.FlagValues) -> "RewardModel":
    """The judge described. Raises InputError."""
    from spatialreward_jax.mesh import mesh_of  # here: programs that need no net define the flags too
    from spatialreward_jax.reward.judge import RewardModel
    from spatialreward_jax.reward.vlm import Decoding

    return RewardModel.from_pretrained(
        given.model,
        adapter=given.adapter or None,
        mesh=mesh_of(given.mesh),
        pixel_policy=given.pixel_policy,
        templates=given.templates or None,
        parsing=given.parsing,
        aggregation=given.aggregation,
        decoding=Decoding(max_new_tokens=given.max_new_tokens) if given.max_new_tokens else None,
        quantize=given.quantize,
        **writing(given),
    )
