"""The parts of `transformers` that need no torch; the only place that imports it."""

import os
import pathlib

# Set before the import: it advises every user to install torch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.pretrained import read_json

__all__ = ["PreTrainedTokenizerBase", "Qwen2VLImageProcessorPil", "load_tokenizer", "smart_resize"]


def load_tokenizer(folder: pathlib.Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, padding on the right, with the chat template that the folder means.

    Raises:
      InputError: the folder has no tokenizer, or no chat template.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder} has no tokenizer (tokenizer.json): give a complete checkpoint folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InputError(f"{folder} holds no readable tokenizer: {str(error).splitlines()[0]}") from None
    template = folder / "chat_template.json"
    if template.exists():  # the processor's own, which wins in `transformers` too
        tokenizer.chat_template = read_json(template)["chat_template"]
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer in {folder} has no chat template: give a complete checkpoint folder")
    tokenizer.padding_side = "right"
    return tokenizer
