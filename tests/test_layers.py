"""Who imports whom: packages and single modules below `spatialreward_jax` depend on each other one way only."""

import ast
import graphlib
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "spatialreward_jax"


def imports_of(file):
    """Full names of what a module imports when it is run; what only type checkers read does not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(node) for hint in hints for node in ast.walk(hint)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file):
    """`reward` of `spatialreward_jax/reward/judge.py`, `mesh` of `spatialreward_jax/mesh.py`."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_rooms_do_not_import_each_other_in_circles():
    rooms = {}
    for file in PACKAGE.rglob("*.py"):
        found = {name.split(".")[1] for name in imports_of(file) if name.startswith("spatialreward_jax.")}
        rooms.setdefault(room_of(file), set()).update(found - {room_of(file)})
    assert {"data", "reward", "models", "recipes"} <= set(rooms) and rooms["train"]
    rooms.pop("__init__")
    known = {room: {name for name in found if name in rooms} for room, found in rooms.items()}
    order = list(graphlib.TopologicalSorter(known).static_order())  # CycleError names a circle
    assert order.index("kernels") < order.index("models") < order.index("reward") < order.index("recipes")
