"""From instructions to token rows of the text tower."""

from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.buckets import Buckets, pad_rows
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.huggingface import PreTrainedTokenizerBase

EDIT_SYSTEM = "You are a helpful assistant that generates high-quality images based on user instructions."
"""System turn under which the published editor was trained (interface data of OmniGen2's `pipeline_omnigen2.py`)."""

DEFAULT_SYSTEM = "You are a helpful assistant."
"""System turn of the tokenizer's own chat template."""

LONG_NEGATIVE = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)
"""Negative text that the published inference script uses (interface data of OmniGen2's `inference.py`)."""

DROPPED_SYSTEM = "You are a helpful assistant that generates images."
"""System turn where supervised training leaves the text out (interface data of OmniGen2's training data set)."""

NEGATIVES = {
    "long": (EDIT_SYSTEM, LONG_NEGATIVE),
    "empty": (EDIT_SYSTEM, ""),
    "default": (DEFAULT_SYSTEM, ""),
    "dropped": (DROPPED_SYSTEM, ""),
}
"""Negative conditioning by name: (system turn, user turn)."""

MAX_TOKENS = 1024
LENGTHS = Buckets.linear(64, MAX_TOKENS)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], *, max_tokens: int = MAX_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """(system, user) turns -> right-padded tokens int32 [B, T] and mask bool [B, T], T a bucket.

    No generation prompt; longer rows are cut at `max_tokens`.

    Raises:
      InputError: `max_tokens` is beyond the longest bucket.
    """
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise InputError(f"{max_tokens} text tokens: use 1 to {MAX_TOKENS}")
    rows = []
    for system, user in turns:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        rows.append(np.asarray(tokenizer(text)["input_ids"][:max_tokens], np.int32))
    return pad_rows(rows, LENGTHS.fit(max(map(len, rows))), fill=tokenizer.pad_token_id or 0)


def edit_turns(instructions: Sequence[str]) -> list[tuple[str, str]]:
    """Turns of the full branch. Raises InputError for an empty instruction."""
    for number, instruction in enumerate(instructions):
        if not instruction.strip():
            raise InputError(f"instruction {number + 1} is empty: say what to change")
    return [(EDIT_SYSTEM, instruction) for instruction in instructions]


def negative_turn(name: str) -> tuple[str, str]:
    """Turn of the negative branches. Raises InputError for an unknown name."""
    if name not in NEGATIVES:
        raise InputError(f"negative prompt {name!r} is unknown; choose one of {', '.join(NEGATIVES)}")
    return NEGATIVES[name]
