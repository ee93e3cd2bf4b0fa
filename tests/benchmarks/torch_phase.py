"""A phase of online RL as the OmniGen2-RL framework runs it, in torch on the nets of a benchmark's folder."""

import itertools
import pathlib
import time
from typing import Any

import numpy as np
import torch
import torch_editor as te
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from spatialreward_jax.data.pipeline import EditBatch
from spatialreward_jax.editor import prompts
from spatialreward_jax.flow import time_grid
from spatialreward_jax.io.peft import write_peft
from spatialreward_jax.models import omnigen2
from spatialreward_jax.recipes.flow_grpo import FlowGRPO

SHIFT, SCALE = 0.1159, 0.3611


class Framework:
    """The framework's phase: padded guidance batches, adapter-off forward for the KL term, checkpointing, AdamW."""

    def __init__(self, folder: pathlib.Path, task: FlowGRPO, batch: EditBatch):
        """Loads the nets of `folder`; sizes and settings are those of our task and its batch."""
        s, nets = task.settings, task.nets
        self.settings, self.batch, self.side = s, batch, batch.target_sizes[0][0] // nets.multiple
        self.latent = self.side * nets.transformer.config.patch_size
        write_peft(folder / "adapter", nets.adapters, nets.spec, omnigen2.ENTRIES)
        self.net = te.load_transformer(folder / "transformer", folder / "adapter")
        self.net.base_model.model.enable_gradient_checkpointing()
        self.velocity = te.TorchVelocity(self.net, nets.transformer.config)
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").eval().requires_grad_(False)
        self.tower = _text_tower(folder / "mllm")
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, s.lr, betas=tuple(s.betas), weight_decay=s.weight_decay)
        self.trained, self.random = trained, torch.Generator().manual_seed(s.seed)
        edits = prompts.edit_turns([request.instruction for request in batch.requests])
        self.tokens = [
            _real(*prompts.tokenize(nets.tokenizer, turns)) for turns in (edits, [prompts.negative_turn(s.negative)])
        ]
        times = time_grid(np.array(self.latent**2), s.sampler_steps, s.base).tolist()
        self.times = list(itertools.pairwise(times))
        self.guided = [
            s.guidance.range[0] <= i / s.sampler_steps <= s.guidance.range[1] for i in range(s.sampler_steps)
        ]
        self.seconds: dict[str, list[float]] = {"encode": [], "sample": [], "decode": [], "update": []}

    def rooms(self, rounds: int) -> dict[str, float]:
        """Median milliseconds of each part of the last phases."""
        return {name: round(1e3 * float(np.median(s[-rounds:])), 1) for name, s in self.seconds.items()}

    def text(self) -> np.ndarray:
        """Features of the instructions' real tokens, one row each."""
        with torch.no_grad():
            ids, mask = self.tokens[0]
            return self._features(ids, mask)[mask].numpy()

    def run(self) -> None:
        """One phase."""
        rooms = iter(self.seconds.values())

        def timed(run, *args):
            start = time.perf_counter()
            out = run(*args)
            next(rooms).append(time.perf_counter() - start)
            return out

        branches = timed(torch.no_grad()(self.encode))
        states = timed(torch.no_grad()(self.sample), branches)
        timed(torch.no_grad()(self.decode), states[-1][1])
        timed(self.update, branches, states)

    def encode(self) -> list[te.Branch]:
        """The three branches of every edit (not of every prompt: the framework repeats them before it encodes)."""
        group = self.settings.group
        pixels = torch.stack([torch.from_numpy(images[0]) for images in self.batch.sources])
        refs = self.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.sample(self.random)
        refs = ((refs - SHIFT) * SCALE).repeat_interleave(group, 0)
        full, negative = (self._features(*tokens) for tokens in self.tokens)
        made = []
        for text, mask, shown in (
            (full, self.tokens[0][1], True),
            *((negative, self.tokens[1][1], r) for r in (True, False)),
        ):
            branch = te.Branch.__new__(te.Branch)
            repeats = len(refs) // len(text)
            branch.text, branch.mask = text.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0)
            branch.refs = [[ref] if shown else None for ref in refs]
            made.append(branch)
        return made

    def _features(self, ids, mask):
        return self.tower(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state

    def sample(self, branches: list[te.Branch]) -> list[tuple]:
        """Every step as (state, next state, log-probability)."""
        padded, steps = te.Branch.padded(branches), []
        count = len(branches[0].refs)
        x = torch.randn(count, branches[0].refs[0][0].shape[0], self.latent, self.latent, generator=self.random)
        for i, (t, t_next) in enumerate(self.times):
            v = self._predict(x, i, branches, padded)
            sigma = self._sigma(i)
            dt, half = t_next - t, sigma**2 / (2 * (1 - t))
            mean = x * (1 - half * dt) + v * (1 + half * t) * dt
            after = mean + sigma * dt**0.5 * torch.randn(x.shape, generator=self.random)
            steps.append((x, after, te.log_prob(x, v, after, (t, t_next), sigma)[0]))
            x = after
        return steps

    def _predict(self, x, step, branches, padded):
        t = torch.full((len(x),), self.times[step][0])
        if self.guided[step]:
            return self.velocity.batched(x, t, padded, self.settings.guidance)
        return self.velocity(x, t, branches[0])

    def _sigma(self, step):
        t, t_next = self.times[step]
        return self.settings.sigma * ((1 - t) / (t_next if step == 0 else t)) ** 0.5

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents -> uint8 images."""
        image = self.vae.decode(x / SCALE + SHIFT).sample
        return (image / 2 + 0.5).clamp(0, 1).mul(255).round().byte()

    def update(self, branches: list[te.Branch], states: list[tuple]) -> None:
        """`updates_per_phase` optimiser steps, each on its share of the edits and on the same drawn steps."""
        s, count = self.settings, len(branches[0].refs)
        rng = np.random.default_rng([s.seed, 0])
        kept = np.sort(rng.choice(s.sampler_steps, -(-s.sampler_steps * 3 // 5), replace=False)).tolist()
        advantage = torch.linspace(-1, 1, count)
        for update in range(s.updates_per_phase):
            rows = slice(update * count // s.updates_per_phase, (update + 1) * count // s.updates_per_phase)
            share = [_rows(branch, rows) for branch in branches]
            self._step(share, [tuple(a[rows] for a in state) for state in states], advantage[rows], kept)

    def _step(self, branches, states, advantage, kept):
        s, padded = self.settings, te.Branch.padded(branches)
        stds = {i: self._sigma(i) * (self.times[i][1] - self.times[i][0]) ** 0.5 for i in kept}
        mean_std = sum(stds.values()) / len(kept)
        for i in kept:
            x, after, old = states[i]
            logp, mean = te.log_prob(x, self._predict(x, i, branches, padded), after, self.times[i], self._sigma(i))
            with torch.no_grad(), self.net.disable_adapter():
                v = self._predict(x, i, branches, padded)
                _, mean_ref = te.log_prob(x, v, after, self.times[i], self._sigma(i))
            loss = te.policy_loss(logp, old, advantage, s.clip) * len(kept) * stds[i] / mean_std
            loss = loss + 0.04 * (mean - mean_ref).pow(2).mean() / (2 * self._sigma(i) ** 2)
            (loss / len(kept)).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, s.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _real(ids: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask cut to the longest row, as the framework pads."""
    length = int(mask.sum(1).max())
    return torch.from_numpy(ids[:, :length].astype(np.int64)), torch.from_numpy(mask[:, :length])


def _rows(branch: te.Branch, rows: slice) -> te.Branch:
    part = te.Branch.__new__(te.Branch)
    part.text, part.mask, part.refs = branch.text[rows], branch.mask[rows], branch.refs[rows]
    return part


def _text_tower(folder: pathlib.Path) -> Any:
    """The text part of Qwen2.5-VL alone: our benchmark's folder has no vision tower."""
    config = AutoConfig.from_pretrained(folder)
    tower = Qwen2_5_VLTextModel(config.get_text_config()).eval().requires_grad_(False)
    weights = load_file(folder / "model.safetensors")
    tower.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    return tower
