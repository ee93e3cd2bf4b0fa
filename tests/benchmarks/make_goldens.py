"""Compares real weights with the official torch code: writes reference arrays that `parity` then checks.

    python tests/benchmarks/make_goldens.py --out=DIR --judge=SPATIALREWARD --editor=OMNIGEN2 --clone=CLONE
    python -m spatialreward_jax.parity DIR

Runs transformers (judge, text tower), diffusers (autoencoder) and a clone of VectorSpaceLab/OmniGen2 (transformer) in
float32 on a few seeded inputs; needs torch, torchvision, transformers, diffusers, accelerate and einops. Only what is
named is written: the judge's file with --judge, the text tower's and the autoencoder's with --editor, the
transformer's with --editor and --clone (and with an adapter's arrays too with --lora, a PEFT folder). DIR links to the
given folders. `--gradients` adds the judge's gradients, which take twice the weights' memory.

The files and arrays are those of the reference goldens (`tests/goldens`); float32 needs 4 bytes per weight in
torch, and again in `parity`: 16 GB for the 4B editor, 35 GB for the 8B judge.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.errors import InputError

SETTINGS = {
    "format": 1,
    "about": "Made by tests/benchmarks/make_goldens.py from the user's own weights.",
    "vae": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "tolerance": {
        "vae.npz": 5e-5,
        "text_encoder.npz": 1e-4,
        "omnigen2_transformer.npz": 2e-4,
        "qwen3_vl.npz": {"*": 2e-4, "*logprob*": 1e-4, "*grad*": 2e-5, "*ids*": 0, "*generated*": 0},
    },
    "tolerance_meaning": "|a - b| <= tol * max(1, max|b|) per array; first matching pattern after '*' wins; 0 is equal",
}
"""`goldens.json`; tolerances as in the reference goldens."""

SIZES = ((64, 48), (80, 64))
"""Of the images that the autoencoder sees, in pixels: multiples of 16."""

CASES = {  # latent sizes of each sample's target and of its references
    "a": [((8, 6), [(8, 6)]), ((8, 6), [(8, 6)])],
    "b": [((6, 10), []), ((8, 4), [(10, 6)]), ((4, 4), [(4, 8), (8, 6)])],
    "c": [((10, 6), []), ((10, 6), [])],
}


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("out", "", "Folder to write; must not exist.")
    flags.DEFINE_string("judge", "", "Folder of a Qwen3-VL checkpoint with its tokenizer.")
    flags.DEFINE_string("editor", "", "Folder of an editor in the OmniGen2 layout.")
    flags.DEFINE_string("clone", "", "Clone of VectorSpaceLab/OmniGen2.")
    flags.DEFINE_string("lora", "", "PEFT adapter of the editor's transformer.")
    flags.DEFINE_boolean("gradients", False, "Also the judge's gradients.")
    flags.DEFINE_integer("new", 32, "Tokens that the judge answers.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Of the inputs.")


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.normal(size=shape).astype(np.float32)


def autoencoder(folder: pathlib.Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of vae.npz."""
    import torch
    from diffusers import AutoencoderKL

    net = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    shift, scale = net.config.shift_factor, net.config.scaling_factor
    factor, arrays = 2 ** (len(net.config.block_out_channels) - 1), {}
    for i, (height, width) in enumerate(SIZES):
        image = rng.uniform(-1, 1, (2 - i, 3, height, width)).astype(np.float32)
        noise = draw(rng, 2 - i, net.config.latent_channels, height // factor, width // factor)
        latent = draw(rng, *noise.shape)
        posterior = net.encode(torch.from_numpy(image)).latent_dist
        raw = posterior.mean + posterior.std * torch.from_numpy(noise)
        arrays |= {
            f"image_{i}": image,
            f"posterior_noise_{i}": noise,
            f"latent_{i}": latent,
            f"enc_mean_{i}": posterior.mean.numpy(),
            f"enc_logvar_{i}": posterior.logvar.numpy(),
            f"enc_latent_{i}": ((raw - shift) * scale).numpy(),
            f"decoded_{i}": net.decode(torch.from_numpy(latent) / scale + shift).sample.numpy(),
        }
    return arrays


def text_tower(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of text_encoder.npz."""
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    from spatialreward_jax.editor.prompts import DEFAULT_SYSTEM, EDIT_SYSTEM

    tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    template = folder / "processor" / "chat_template.json"
    if template.exists():
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    tokenizer.padding_side = "right"
    users = ["Make the sky orange.", "Remove the cat on the left and put a vase in its place.", "把猫变成狗", "", ""]
    systems = [EDIT_SYSTEM] * 4 + [DEFAULT_SYSTEM]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": s}, {"role": "user", "content": u}], tokenize=False
        )
        for s, u in zip(systems, users)
    ]
    inputs = tokenizer(texts, padding="longest", return_tensors="pt")
    net = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "mllm", dtype=torch.float32).eval()
    hidden = net(**inputs, output_hidden_states=True).hidden_states[-1]
    return {
        "prompts": np.array(users),
        "system_prompts": np.array(systems),
        "chat_text": np.array(texts),
        "input_ids": inputs["input_ids"].numpy(),
        "attention_mask": inputs["attention_mask"].numpy(),
        "last_hidden_state": hidden.numpy(),
    }


def transformer(folder: pathlib.Path, lora: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of omnigen2_transformer.npz."""
    import torch_editor

    net = torch_editor.load_transformer(folder / "transformer")
    config, arrays = net.config, {}
    for name, samples in CASES.items():
        lengths = rng.integers(5, 14, len(samples))
        arrays[f"{name}_num_refs"] = np.array([len(refs) for _, refs in samples])
        arrays[f"{name}_timestep"] = rng.uniform(0.05, 0.95, len(samples)).astype(np.float32)
        arrays[f"{name}_text"] = draw(rng, len(samples), lengths.max(), config.text_feat_dim)
        arrays[f"{name}_text_mask"] = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        for i, (target, refs) in enumerate(samples):
            arrays[f"{name}_latent_{i}"] = draw(rng, config.in_channels, *target)
            for j, size in enumerate(refs):
                arrays[f"{name}_ref_{i}_{j}"] = draw(rng, config.in_channels, *size)
    arrays |= _velocities(net, config, arrays, "velocity", positions=True)
    if lora:
        adapted = torch_editor.PeftModel.from_pretrained(net, lora).eval()
        arrays |= _velocities(adapted, config, arrays, "velocity_lora", positions=False)
    return arrays


def _velocities(net: Any, config: Any, arrays: dict[str, np.ndarray], label: str, *, positions: bool) -> dict:
    """Velocities of all cases, and the rotary position ids that the clone's embedder computes."""
    import torch
    import torch_editor

    freqs, found, seen = torch_editor.angles(config), {}, []
    embedder = net.rope_embedder
    inner = embedder._get_freqs_cis
    embedder._get_freqs_cis = lambda tables, ids: (seen.append(ids.numpy()), inner(tables, ids))[1]
    for name, samples in CASES.items():
        get = lambda key, name=name: torch.from_numpy(arrays[f"{name}_{key}"])
        refs = [[get(f"ref_{i}_{j}") for j in range(len(sizes))] or None for i, (_, sizes) in enumerate(samples)]
        out = net(
            hidden_states=[get(f"latent_{i}") for i in range(len(samples))],
            timestep=get("timestep"),
            text_hidden_states=get("text"),
            text_attention_mask=get("text_mask"),
            freqs_cis=freqs,
            ref_image_hidden_states=refs,
        )
        found |= {f"{name}_{label}_{i}": v.numpy() for i, v in enumerate(out)}
        if positions:
            found[f"{name}_position_ids"] = seen[-1]
    embedder._get_freqs_cis = inner
    return found


def main(_argv: Sequence[str]) -> None:
    """Command line, see the module."""
    given = flags.FLAGS
    out = pathlib.Path(given.out)
    if not given.out or out.exists():
        raise InputError(f"--out={given.out}: name a folder that does not exist yet")
    if not given.judge and not given.editor:
        raise InputError("nothing to do: give --judge=FOLDER, or --editor=FOLDER (with --clone for its transformer)")
    for name in ("judge", "editor", "clone", "lora"):
        if given[name].value and not pathlib.Path(given[name].value).is_dir():
            raise InputError(f"--{name}={given[name].value} is no folder")
    if (given.lora and not given.clone) or (given.clone and not given.editor):
        raise InputError("--lora needs --clone, and --clone needs --editor")
    import torch

    out.mkdir(parents=True)
    rng, settings, editor = np.random.default_rng(given.seed), dict(SETTINGS), pathlib.Path(given.editor)
    links = {"spatialreward": given.judge, "omnigen2": given.editor, "lora": given.lora}
    for name, folder in links.items():
        if folder:
            (out / name).symlink_to(pathlib.Path(folder).resolve(), target_is_directory=True)
    settings["grpo"] = {"lora": {"dir": "lora"}}
    (out / "goldens.json").write_text(json.dumps(settings, indent=1))
    with torch.no_grad():
        if given.editor:
            np.savez(out / "vae.npz", **autoencoder(editor, rng))
            np.savez(out / "text_encoder.npz", **text_tower(editor))
        if given.clone:
            import torch_editor

            torch_editor.add_clone(given.clone)
            np.savez(out / "omnigen2_transformer.npz", **transformer(editor, given.lora, rng))
    if given.judge:
        import torch_judge

        arrays = torch_judge.goldens(pathlib.Path(given.judge), given.new, given.gradients, rng)
        np.savez(out / "qwen3_vl.npz", **arrays)
    print(f"written: {', '.join(sorted(p.name for p in out.glob('*.npz')))}; now run")
    print(f"python -m spatialreward_jax.parity {out}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
