"""What the nets of a run take in memory before anything is computed: parameters and bytes, of all devices together."""

from typing import Any

import jax
import numpy as np

from spatialreward_jax.editor.nets import EditorNets
from spatialreward_jax.models.qwen3_vl import empty_cache
from spatialreward_jax.reward.loading import JudgeNet

STATE = 3
"""Float32 copies of what is trained that AdamW's state has: the parameters and two moments."""


def weights_of(nets: EditorNets, judge: JudgeNet, judge_int8: JudgeNet) -> list[dict[str, Any]]:
    """Rows `name`, `parameters` (B), `gigabytes`; shapes are enough, see `planning.nets`.

    `judge_int8`: the same judge quantized; its row counts the parameters of `judge`. "judge's cache" is of one token.
    """
    parts = {
        "judge": (judge.base, judge.base),
        "judge, int8": (judge.base, judge_int8.base),
        "editor's transformer": (nets.transformer.params,) * 2,
        "editor's text tower": (nets.text.params,) * 2,
        "editor's autoencoder": (nets.vae.params,) * 2,
    }
    rows = [_row(name, _count(counted), _bytes(held)) for name, (counted, held) in parts.items()]
    if nets.adapters is not None:
        trained = _count(nets.adapters)
        rows.append(_row("adapters and their optimiser", trained, 4 * STATE * trained))
    held = {row["name"]: row["gigabytes"] for row in rows}
    edit = sum(held[f"editor's {net}"] for net in ("transformer", "text tower", "autoencoder"))
    everything = sum(gigabytes for name, gigabytes in held.items() if name != "judge, int8")
    cache = jax.eval_shape(lambda: empty_cache(judge.config.text, 1, 1, judge.dtype))
    return [
        *rows,
        {"name": "judge's cache, a token", "gigabytes": _bytes(cache) / 1e9},
        {"name": "editor", "gigabytes": edit},
        {"name": "all of it, the judge not quantized", "gigabytes": everything},
    ]


def _row(name: str, parameters: int, held: int) -> dict[str, Any]:
    return {"name": name, "parameters": parameters / 1e9, "gigabytes": held / 1e9}


def _count(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
