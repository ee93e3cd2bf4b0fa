"""Training tasks by the name that a config's `task` field gives; a recipe is imported only when it is asked for."""

import importlib
from types import ModuleType

from spatialreward_jax.errors import InputError

RECIPES = {
    "editor_sft": "spatialreward_jax.recipes.editor_sft",
    "editor_vae": "spatialreward_jax.recipes.editor_vae",
    "flow_grpo": "spatialreward_jax.recipes.flow_grpo",
    "reward_sft": "spatialreward_jax.recipes.reward_sft",
}
"""name -> module with `make_task(config, mesh, workdir) -> Task` (see `spatialreward_jax.recipes.task`)."""


def load_recipe(name: str) -> ModuleType:
    """The recipe's module. Raises InputError for a name that is not in `RECIPES`."""
    if name not in RECIPES:
        raise InputError(f"task {name!r} is unknown; choose one of {', '.join(sorted(RECIPES))}")
    return importlib.import_module(RECIPES[name])
