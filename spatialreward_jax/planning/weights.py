"""What the nets of a run take in memory before anything is computed: parameters and bytes, on one device."""

from typing import Any

import jax

from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.models.qwen3_vl import empty_cache
from spatialreward_jax.planning.measure import per_chip
from spatialreward_jax.reward.loading import JudgeNet

STATE = 3
"""Float32 numbers that training keeps for each parameter that it changes: the parameter and AdamW's two moments."""


def weights_of(nets: EditorNets, judge: JudgeNet, judge_int8: JudgeNet) -> list[dict[str, Any]]:
    """Rows `name`, `parameters` (in 1e9; not of sums) and `gigabytes` (1e9 bytes).

    Args:
      nets, judge: shapes on a mesh of one device, see `planning.nets`.
      judge_int8: the same judge quantized; its row counts the parameters of `judge`.
    """
    editor = [
        _row("editor's transformer", nets.transformer.params),
        _row("editor's text tower", nets.text.params),
        _row("editor's autoencoder", nets.vae.params),
    ]
    trained = _row("trained", nets.transformer.params if nets.adapters is None else nets.adapters)["parameters"]
    state = {"name": "what is trained, and its optimiser", "parameters": trained, "gigabytes": 4 * STATE * trained}
    served = _row("judge", judge.base)
    total = lambda name, rows: {"name": name, "gigabytes": sum(row["gigabytes"] for row in rows)}
    cache = jax.eval_shape(lambda: empty_cache(judge.config.text, 1, 1, judge.dtype))
    return [
        served,
        served | {"name": "judge, int8", "gigabytes": per_chip(judge_int8.base) / 1e9},
        {"name": "judge's cache, a token", "gigabytes": per_chip(cache) / 1e9},
        *editor,
        total("editor", editor),
        state,
        total("all of it, the judge not quantized", [served, *editor, state]),
    ]


def _row(name: str, tree: Any) -> dict[str, Any]:
    parameters = sum(x.size for x in jax.tree.leaves(tree))
    return {"name": name, "parameters": parameters / 1e9, "gigabytes": per_chip(tree) / 1e9}
