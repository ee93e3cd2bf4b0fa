"""The small tokenizer of the embedded checkpoints, made from EditWorld's own text: deterministic, a few seconds.

    python -m spatialreward_jax.data.editworld.tokenizer

rewrites `assets/embedded/tokenizer/` and the two Hugging Face layouts that link to it. Byte-level BPE with the special
tokens of Qwen2-VL at the end of the table, as in the published tokenizers. Two things differ on purpose: numbers are
words, so that every integer 0..1000 (all coordinates, all scores) is one token; and the keys of the answer JSON and the
region markers are never split by the pre-tokenizer, so that frequent ones become single tokens too.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from spatialreward_jax.data.editworld import answers, language
from spatialreward_jax.data.editworld.candidates import FAILURES, Candidate, random_candidate
from spatialreward_jax.data.editworld.edits import sample_edit

ASSETS = pathlib.Path(__file__).parents[2] / "assets" / "embedded"
ENTRIES = 2048
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_UNUSED = (  # in the published table, never special there
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_WORDS = (
    r" ?<\|[a-z_]+\d*\|>"  # region markers
    r'|[{}\[\],"]* ?"[a-z][a-z_0-9]*": ?(?:"|[\[{]*)'  # a key of a JSON object with the punctuation around it
    r"|(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LARGEST = 1000
_EDITS, _REPEATED = 3000, 30

JUDGE_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' or 'video' in part %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Turns as Qwen3-VL writes them: no system turn unless one is given."""

EDITOR_TEMPLATE = (
    "{%- if messages and messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}" + JUDGE_TEMPLATE
)
"""Turns as Qwen2.5-VL writes them: a default system turn where none is given."""


def corpus() -> Iterator[str]:
    """The text that the tokenizer is trained on: instructions, answers, and the judge's questions."""
    for index in range(_EDITS):
        sample = sample_edit("train", index)
        candidate = random_candidate(sample, np.random.default_rng(index), FAILURES)
        yield from (sample.instruction, sample.instruction.lower(), sample.instruction.capitalize())
        yield brief_answer(candidate)
        yield answers.quality_answer(candidate)
    # A copy of the wordings, so that a later change of theirs does not change the tokenizer of trained checkpoints.
    questions = (ASSETS / "tokenizer" / "questions.txt").read_text(encoding="utf-8").split("\n\n")
    vocabulary = [phrase for table in _tables() for phrase in table]
    for _ in range(_REPEATED):
        yield from questions
        yield from vocabulary
        yield "system\nYou are a helpful assistant.\nuser\nassistant\n"
        yield from ("<|global|>", *(f" <|bbox_{i}|>" for i in range(10)), *(f"<|bbox_{i}|>" for i in range(10)))


def brief_answer(candidate: Candidate) -> str:
    """A consistency answer whose reasoning has a few words for each region: `answers.consistency_answer` as it was when
    the vocabulary was made. Later wordings have to do with its words."""
    phrases = [what + answers.verdict(candidate, op) for op in candidate.done for what in answers.happened(op)]
    cited = [f"<|bbox_{i}|> {phrase}." for i, phrase in enumerate(phrases)]
    answer = json.loads(answers.consistency_answer(candidate))
    answer["reasoning"] = " ".join([*cited, f"<|global|> {answers.overall(candidate.scores)}"])
    return json.dumps(answer, separators=(",", ":"))


def _tables():
    for words in (language.PLACE_WORDS, language.GOAL_WORDS, language.GROUND_WORDS, language.COLOR_WORDS):
        yield from words.values()


def _number_merges() -> list[tuple[str, str]]:
    """Merges that turn each of 10..1000 into one token, in an order that leaves only one way to each number.

    Two digits merge in rising order, so of the two pairs in a three-digit number the smaller one merges first.
    """
    merges = [(str(n // 10), str(n % 10)) for n in range(10, 100)]
    for n in range(100, _LARGEST):
        left, right = n // 10, n % 100
        merges.append((str(n // 100), str(right)) if 10 <= right < left else (str(left), str(n % 10)))
    return [*merges, (str(_LARGEST // 10), str(_LARGEST % 10))]


def train() -> Tokenizer:
    """Trains the tokenizer from scratch. Deterministic: the same bytes on every machine."""
    numbers = _number_merges()
    learned = ENTRIES - len(SPECIAL) - len(_UNUSED) - len(numbers)
    digits = Tokenizer(models.BPE())
    digits.normalizer = normalizers.NFC()
    digits.pre_tokenizer = _pre_tokenizer(r"\p{N}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=learned, initial_alphabet=alphabet, show_progress=False, min_frequency=2, special_tokens=[]
    )
    digits.train_from_iterator(corpus(), trainer)
    model = json.loads(digits.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = [tuple(merge) for merge in model["merges"]]
    for left, right in numbers:
        # A key such as "bbox_10" may have taught the pair already: its rank then only has to stay the first.
        vocab.setdefault(left + right, len(vocab))
        if (left, right) not in merges:
            merges.append((left, right))
    if len(vocab) + len(SPECIAL) + len(_UNUSED) != ENTRIES:
        raise RuntimeError(f"the corpus teaches {len(vocab)} entries, not {ENTRIES}: enlarge it or lower ENTRIES")
    out = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    out.normalizer = normalizers.NFC()
    out.pre_tokenizer = _pre_tokenizer(r"\p{N}+")
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens(list(SPECIAL))
    out.add_tokens(list(_UNUSED))
    return out


def _pre_tokenizer(number: str):
    split = pre_tokenizers.Split(Regex(_WORDS % number), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def settings(template: str) -> dict:
    """The contents of `tokenizer_config.json` with a chat template."""
    return {
        # Qwen2Tokenizer would put its own pre-tokenizer, one token a digit, in place of the one in tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }


def write_settings(folder: pathlib.Path, template: str) -> None:
    """Writes `tokenizer_config.json`, `chat_template.json` and `special_tokens_map.json` of a Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {name: settings(template)[name] for name in ("additional_special_tokens", "eos_token", "pad_token")}
    for name, content in (
        ("tokenizer_config.json", settings(template)),
        ("chat_template.json", {"chat_template": template}),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_assets(assets: pathlib.Path = ASSETS) -> None:
    """Trains and writes everything: the tokenizer once, and the settings of judge and editor with a link to it."""
    (assets / "tokenizer").mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(train().to_str()), ensure_ascii=False, separators=(",", ":"))
    (assets / "tokenizer" / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    for folder, template in (("judge", JUDGE_TEMPLATE), ("editor/processor", EDITOR_TEMPLATE)):
        write_settings(assets / folder, template)
        link = assets / folder / "tokenizer.json"
        link.unlink(missing_ok=True)
        link.symlink_to("../" * (folder.count("/") + 1) + "tokenizer/tokenizer.json")


if __name__ == "__main__":
    write_assets()
