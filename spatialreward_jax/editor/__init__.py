"""The instruction-driven image editor in the OmniGen2 layout."""

from spatialreward_jax.editor.editor import Editor
from spatialreward_jax.editor.nets import EditorNets, load_nets

__all__ = ["Editor", "EditorNets", "load_nets"]
