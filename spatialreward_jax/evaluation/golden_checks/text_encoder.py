"""text_encoder.npz: chat template, tokens and hidden states of the editor's text tower."""

import jax
import jax.numpy as jnp

from spatialreward_jax.editor.prompts import tokenize
from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.io.huggingface import load_tokenizer


def check(case: Case, goldens: Goldens) -> None:
    """Checks all prompts of the file, each under its own system turn."""
    tokenizer = load_tokenizer(goldens.folder / "omnigen2" / "processor")
    turns = [(str(s), str(u)) for s, u in zip(case.input("system_prompts"), case.input("prompts"))]
    messages = [[{"role": "system", "content": s}, {"role": "user", "content": u}] for s, u in turns]
    case.compare("chat_text", [tokenizer.apply_chat_template(m, tokenize=False) for m in messages])
    width = case.stored("input_ids").shape[1]
    tokens, mask = tokenize(tokenizer, turns, max_tokens=width)
    case.compare("input_ids", tokens[:, :width])
    case.compare("attention_mask", mask[:, :width].astype(int))
    net = goldens.text_tower
    hidden = jax.jit(lambda params, *args: net.bind(params)(*args))(net.params, jnp.asarray(tokens), jnp.asarray(mask))
    case.compare("last_hidden_state", hidden[:, :width], mask=mask[:, :width])
