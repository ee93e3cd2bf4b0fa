"""What a judge is taught with: EditWorld's lessons or rows of chats, read before the judge is loaded."""

import dataclasses
from collections.abc import Mapping

from spatialreward_jax.data.chat_rows import ChatFile
from spatialreward_jax.data.lessons import Candidates, Wording, editworld_lessons, own_lessons
from spatialreward_jax.data.mixing import Mixture, Rows
from spatialreward_jax.data.own_edits import OwnEdits
from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import bucket
from spatialreward_jax.recipes.reward_settings import Settings
from spatialreward_jax.reward.chats import Turn
from spatialreward_jax.reward.processor import Processor, patch_bucket
from spatialreward_jax.reward.supervision import tokenize_chat
from spatialreward_jax.reward.templates import Templates


@dataclasses.dataclass(frozen=True)
class RewardRows:
    """training: the batches that are taught. heldout: sources of rows by name, measured alone; {} for nothing."""

    training: Mixture
    heldout: Mapping[str, Rows]


def read_rows(settings: Settings, processor: Processor, templates: Templates) -> RewardRows:
    """The rows that the settings name. Raises InputError for rows that do not fit, or shares that cannot be."""
    s = settings
    wording = Wording(lambda instruction: templates.sc_text(instruction, 1), templates.pq_text(), s.boxes, s.cited)
    bucket_of = lambda turns, sizes: chat_bucket(processor, turns, sizes, s.max_tokens)

    def training() -> dict[str, Rows]:
        if s.data != "editworld":
            return {"rows": ChatFile(s.data, bucket_of)}
        world = Candidates("train", s.edits, s.candidates, sides=s.sides, failures=s.failures)
        own = own_lessons(OwnEdits(s.own_edits), wording) if s.own_edits else {}
        return editworld_lessons(world, wording) | own

    def heldout() -> dict[str, Rows]:
        path = "editworld" if s.data == "editworld" and not s.heldout else s.heldout
        edits = 2 * s.eval_batches * s.batch
        if not path or not edits:
            return {}
        if path != "editworld":
            return {"rows": ChatFile(path, bucket_of)}
        # Failures as drawn by default, so that held-out losses can be compared.
        return editworld_lessons(Candidates("validation", edits, s.candidates, sides=s.sides), wording)

    count = s.steps * s.optimizing.accumulate
    return RewardRows(Mixture(training(), s.shares, s.batch, count, s.seed), heldout())


def chat_bucket(
    processor: Processor, turns: tuple[Turn, ...], sizes: list[tuple[int, int]], max_tokens: int
) -> tuple[int, ...]:
    """A chat's bucket: padded tokens, padded patches of its largest image, number of images.

    sizes: (height, width) of its images. Raises InputError for a chat without image or of more than `max_tokens`.
    """
    if not sizes:
        raise InputError("the row shows no image")
    grids = [processor.grid(*size) for size in sizes]
    tokens = len(tokenize_chat(processor, turns, grids).tokens)
    if tokens > max_tokens:
        raise InputError(f"the chat makes {tokens} tokens, more than data.max_tokens={max_tokens}")
    return bucket(tokens), patch_bucket(max(rows * columns for rows, columns in grids)), len(sizes)
