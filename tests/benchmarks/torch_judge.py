"""Reference arrays of a Qwen3-VL judge, by transformers in torch; see `make_goldens.py`."""

import json
import pathlib
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIZES = ((64, 96), (96, 64))
"""Of the two images, (height, width) in pixels."""

PROMPTS = (
    "The first image was edited into the second: make the sky orange. Did it work?",
    "Is this picture free of flaws?",
)
"""Text of the prompt that shows both images, and of the one that shows the last alone."""

GRADIENTS = (
    "model.visual.patch_embed.proj.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "lm_head.weight",
)
"""Tensors whose gradients are written; the head only where it is not tied."""


class Judge:
    """The net, its tokenizer and its image processor."""

    def __init__(self, folder: pathlib.Path):
        self.net = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        template = folder / "chat_template.json"
        if template.exists():
            self.tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.image_token = self.net.config.image_token_id
        self.pad = self.net.generation_config.pad_token_id

    def chat(self, text: str, images: int) -> str:
        """Chat of a prompt, one image placeholder for each image."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def inputs(self, chats: list[str], images: list[list[np.ndarray]]) -> dict[str, torch.Tensor]:
        """Left-padded batch."""
        flat = [image for shown in images for image in shown]
        seen = self.images(images=flat, return_tensors="pt")
        grids, rows = iter(seen["image_grid_thw"].tolist()), []
        for chat in chats:
            ids = []
            for token in self.tokenizer(chat)["input_ids"]:
                t, h, w = next(grids) if token == self.image_token else (0, 0, 0)
                ids += [token] * (t * h * w // self.images.merge_size**2 or 1)
            rows.append(ids)
        length = max(map(len, rows))
        pad = lambda fill, row: [fill] * (length - len(row))
        ids = torch.tensor([pad(self.pad, row) + row for row in rows])
        mask = torch.tensor([pad(0, row) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, **seen}

    def kinds(self, ids: torch.Tensor) -> torch.Tensor:
        """What transformers asks for beside the ids: 1 where an image token stands."""
        return (ids == self.image_token).int()

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [B, L, V]."""
        return self.net(**inputs, mm_token_type_ids=self.kinds(inputs["input_ids"])).logits

    def generate(self, inputs: dict[str, torch.Tensor], new: int, eos: Any = None) -> torch.Tensor:
        """Greedy answers [B, <= new], without their prompts."""
        stop = {} if eos is None else {"eos_token_id": eos}
        out = self.net.generate(
            **inputs,
            mm_token_type_ids=self.kinds(inputs["input_ids"]),
            max_new_tokens=new,
            do_sample=False,
            repetition_penalty=1.0,
            **stop,
        )
        return out[:, inputs["input_ids"].shape[1] :]

    def answered(self, inputs: dict[str, torch.Tensor], answers: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, new] of answers behind their prompts."""
        longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], answers], 1))
        longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answers)], 1)
        logits = self.forward(longer)[:, -answers.shape[1] - 1 : -1]
        return logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]


def goldens(folder: pathlib.Path, new: int, gradients: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of qwen3_vl.npz: both prompts, vision features, logits, greedy answers and their log-probabilities."""
    judge = Judge(folder)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    chats = [judge.chat(PROMPTS[0], 2), judge.chat(PROMPTS[1], 1)]
    single, batch = judge.inputs(chats[:1], [images]), judge.inputs(chats, [images, images[1:]])
    arrays: dict[str, Any] = {f"image_{i}": image for i, image in enumerate(images)}
    arrays |= {"prompt_two": np.array(PROMPTS[0]), "prompt_one": np.array(PROMPTS[1])}
    arrays |= {"chat_two": np.array(chats[0]), "chat_one": np.array(chats[1])}
    for name, inputs in (("single", single), ("batch", batch)):
        positions, delta = judge.net.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=judge.kinds(inputs["input_ids"]),
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        positions = torch.where(inputs["attention_mask"].bool(), positions, 0)
        arrays |= {f"{name}_{key}": inputs[key] for key in ("input_ids", "attention_mask", "image_grid_thw")}
        arrays |= {f"{name}_position_ids": positions, f"{name}_rope_deltas": delta}
    arrays["single_pixel_values"] = single["pixel_values"]
    with torch.no_grad():
        vision = judge.net.model.visual(single["pixel_values"], grid_thw=single["image_grid_thw"])
        arrays |= {"vision_output": vision.pooler_output, "vision_last_hidden": vision.last_hidden_state}
        arrays |= {f"deepstack_{k}": feature for k, feature in enumerate(vision.deepstack_features)}
        arrays["single_logits"] = judge.forward(single)
        arrays["batch_last_logits"] = judge.forward(batch)[:, -1]
        answers = {"single": judge.generate(single, new), "batch": judge.generate(batch, new)}
        answers = {name: _widen(tokens, new, judge.pad) for name, tokens in answers.items()}
        arrays |= {f"{name}_generated": tokens for name, tokens in answers.items()}
        early = int(answers["batch"][0, new // 2])
        arrays["early_eos"] = np.int64(early)
        arrays["batch_generated_early_eos"] = judge.generate(batch, new, early)
        arrays["batch_logprobs"] = judge.answered(batch, answers["batch"])
    if gradients:
        arrays |= _gradients(judge, single, answers["single"])
    return {name: np.asarray(value.detach() if torch.is_tensor(value) else value) for name, value in arrays.items()}


def _widen(tokens: torch.Tensor, new: int, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, new - tokens.shape[1]), value=pad)


def _gradients(judge: Judge, single: dict[str, torch.Tensor], answer: torch.Tensor) -> dict[str, Any]:
    values = judge.answered(single, answer)
    (-values.mean()).backward()
    grads = {name: p.grad for name, p in judge.net.named_parameters() if p.grad is not None}
    norm = torch.stack([g.double().pow(2).sum() for g in grads.values()]).sum().sqrt()
    moved = sum(bool(g.abs().any()) for g in grads.values())
    found = {"single_logprobs": values, "single_ce": -values.mean(), "single_grad_norm": norm.float()}
    found["n_params_with_grad"] = np.int64(moved)
    return found | {f"grad/{name}": grads[name] for name in GRADIENTS if name in grads}
