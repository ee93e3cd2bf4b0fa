"""The official OmniGen2 transformer in torch, under the inputs of our benchmarks.

Imports torch, diffusers, peft and a clone of VectorSpaceLab/OmniGen2 or of EditScore's examples/OmniGen2-RL: nothing
here is needed without `--reference`.
"""

import math
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import Guidance
from spatialreward_jax.models.omnigen2 import Conditioning, unpack

PLACES = ("", "examples/OmniGen2-RL")
"""Where the package `omnigen2` lies in a clone."""


def add_clone(path: str) -> None:
    """Makes the clone's package `omnigen2` importable. Raises InputError if it is not there."""
    for place in PLACES:
        root = pathlib.Path(path) / place
        if (root / "omnigen2" / "models" / "transformers" / "transformer_omnigen2.py").is_file():
            sys.path.insert(0, str(root.resolve()))
            from omnigen2.utils import import_utils

            if not torch.cuda.is_available():  # its Triton kernels would ask for a GPU; the fall-back is the same maths
                import_utils._triton_available = False
            return
    raise InputError(f"--reference={path} holds no package omnigen2: give a clone of VectorSpaceLab/OmniGen2")


def load_transformer(folder: pathlib.Path, adapter: pathlib.Path | None = None) -> Any:
    """The transformer of a folder, float32, with a trainable PEFT adapter if one is given."""
    warnings.filterwarnings("ignore")
    from omnigen2.models.transformers.transformer_omnigen2 import OmniGen2Transformer2DModel

    net = OmniGen2Transformer2DModel.from_pretrained(folder).eval().requires_grad_(False)
    return net if adapter is None else PeftModel.from_pretrained(net, adapter, is_trainable=True)


def angles(config: Any) -> list[torch.Tensor]:
    """The clone's rotary tables; it looks texts up on all three axes, so that all have room for the longest."""
    from omnigen2.models.transformers.repo import OmniGen2RotaryPosEmbed

    lengths = (max(1024, *config.axes_lens),) * 3
    return OmniGen2RotaryPosEmbed.get_freqs_cis(config.axes_dim_rope, lengths, theta=10000)


class Branch:
    """One guidance branch's conditioning as the clone takes it: text, its mask, references as [C, h, w] each."""

    def __init__(self, cond: Conditioning):
        self.text = torch.from_numpy(np.array(cond.text))
        self.mask = torch.from_numpy(np.array(cond.text_mask))
        self.refs = [
            [images(refs[j], size)[0] for j, size in enumerate(sizes) if size[0]]
            for refs, sizes in zip(np.asarray(cond.refs), np.asarray(cond.ref_sizes))
        ]
        self.refs = [refs or None for refs in self.refs]

    @classmethod
    def padded(cls, branches: Sequence["Branch"]) -> "Branch":
        """All branches as one batch, texts padded to the longest: how the RL framework runs guidance."""
        length = max(b.text.shape[1] for b in branches)
        pad = lambda x: torch.nn.functional.pad(x, [0, 0] * (x.ndim - 2) + [0, length - x.shape[1]])
        joined = cls.__new__(cls)
        joined.text = torch.cat([pad(b.text) for b in branches])
        joined.mask = torch.cat([pad(b.mask) for b in branches])
        joined.refs = [refs for b in branches for refs in b.refs]
        return joined


def images(tokens: Any, size: Sequence[int]) -> torch.Tensor:
    """Packed tokens [..., T, C], all of one size in patches -> [B, C', h, w]."""
    array = np.moveaxis(np.asarray(unpack(np.asarray(tokens), int(size[0]), int(size[1]))), -1, -3)
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(-1, *array.shape[-3:])


class TorchVelocity:
    """Velocities of a transformer at states [B, C, h, w], times [B]."""

    def __init__(self, net: Any, config: Any):
        self.net, self.freqs = net, angles(config)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, branch: Branch) -> torch.Tensor:
        """One branch -> [B, C, h, w]."""
        refs = branch.refs if any(branch.refs) else None
        out = self.net(
            hidden_states=list(x),
            timestep=t,
            text_hidden_states=branch.text,
            text_attention_mask=branch.mask,
            freqs_cis=self.freqs,
            ref_image_hidden_states=refs if refs is not None else [None] * len(x),
        )
        return torch.stack(list(out))

    def separate(self, x: torch.Tensor, t: torch.Tensor, branches: Sequence[Branch], guidance: Guidance):
        """Guided velocity, branch after branch, each of its own length: the pipeline of OmniGen2."""
        return combine([self(x, t, branch) for branch in branches], guidance)

    def batched(self, x: torch.Tensor, t: torch.Tensor, padded: Branch, guidance: Guidance):
        """Guided velocity, all branches in one padded batch: the RL framework. `padded` is `Branch.padded(...)`."""
        return combine(self(torch.cat([x] * 3), torch.cat([t] * 3), padded).chunk(3), guidance)


def combine(velocities: Sequence[torch.Tensor], guidance: Guidance) -> torch.Tensor:
    """Guided velocity of the branches full, ref, uncond."""
    full, ref, uncond = velocities
    return uncond + guidance.image * (ref - uncond) + guidance.text * (full - ref)


def log_prob(x, v, after, times: Sequence[float], sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-density of a step to `after` [B, C, h, w] from x with velocity v -> ([B], mean of the step)."""
    t, t_next = times
    dt, half = t_next - t, sigma**2 / (2 * (1 - t))
    mean = x * (1 - half * dt) + v * (1 + half * t) * dt
    std = sigma * math.sqrt(dt)
    density = -((after - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1), mean


def policy_loss(logp, old, advantage, clip: Sequence[float]) -> torch.Tensor:
    """Clipped surrogate, mean over samples."""
    ratio = torch.exp(logp - old)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip[0], 1 + clip[1])).mean()
