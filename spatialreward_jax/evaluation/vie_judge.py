"""A VIEScore-style judge behind any OpenAI-compatible endpoint: two questions per edit, two marks of 0..10 each.

VIEScore (arXiv 2312.14867) takes the minimum of the two semantic and of the two perceptual marks and the root of
their product. The wording here is ours; figures of other wordings do not compare, which is why its hash is part of
the identity.
"""

import base64
import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from PIL import Image

from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import png_bytes, read_image
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.parsing import writable
from spatialreward_jax.reward.types import SCORE_RANGE, Edit, Identity, Score

SEMANTIC_PROMPT = """Judge how well an image edit carries out a request. The original comes first, the edit last.
Give two marks from 0 to 10:
1. Success: 0 if the edited image ignores the request, 10 if it fulfils it completely.
2. Restraint: 0 if the edited image has nothing in common with the original, 10 if nothing changed but what had to.
If the images are identical, the request was not carried out.
Answer with one JSON object and nothing else: {"reasoning": "<two sentences at most>", "score": [success, restraint]}
Request: """
QUALITY_PROMPT = """Judge the technical quality of this image, whatever it shows. Give two marks from 0 to 10:
1. Naturalness: 0 if lighting, shadows, perspective or proportions look wrong everywhere, 10 if the image looks natural.
2. Cleanness: 0 if distortions, noise, smears, watermarks or malformed parts cover it, 10 if there are none.
Answer with one JSON object and nothing else: {"reasoning": "<at most two sentences>", "score": [natural, clean]}"""
_RETRY = (408, 409, 429, 500, 502, 503, 504)
_NOT_US = (401, 403, 404)  # a wrong key, address or model: no question would be answered


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why an endpoint does not answer one question."""

    why: str


@dataclasses.dataclass(frozen=True)
class VIEJudge:
    """A judge for `runner.score_rows` that asks an endpoint.

    Attributes:
        url: base address, e.g. http://localhost:8000/v1 (`/chat/completions` is appended).
        model: name of the model there. key_variable: environment variable that holds the access key, may be unset.
        temperature, max_tokens: as sent. workers: questions asked at a time. attempts: per question, with growing
            pauses.
        timeout: seconds per attempt.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512
    workers: int = 8
    attempts: int = 4
    timeout: float = 120.0
    pause: float = 2.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"--vie_url={self.url}: want an address like http://localhost:8000/v1")

    @property
    def identity(self) -> Identity:
        """The endpoint's model and our wording; the weights behind an endpoint cannot be hashed."""
        wording = hashlib.blake2b((SEMANTIC_PROMPT + QUALITY_PROMPT).encode(), digest_size=6).hexdigest()
        decoding = f"temperature={self.temperature:g}, max_tokens={self.max_tokens}"
        return Identity(self.model, "", f"vie-{wording}", "edited resized to source", "strict", "min", decoding)

    def score(self, edits: list[Edit]) -> list[Score]:
        """One score per edit, invalid where an answer cannot be read or the endpoint refuses the question.

        Raises ConnectionError for an endpoint that cannot be reached, or that refuses us.

        The edited image is resized (bicubic) to the size of the source, as in the framework's GEdit script.
        """
        if not edits:
            return []
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            questions = [question for edit in edits for question in _questions(edit)]
            answers = list(pool.map(self._ask, questions))
        return [_read(answers[2 * i], answers[2 * i + 1]) for i in range(len(edits))]

    def _ask(self, content: list[dict]) -> "str | Refusal":
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        why = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return writable(str(json.loads(response.read())["choices"][0]["message"]["content"] or ""))
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code in _NOT_US:
                    hint = f"check --vie_url, --vie_model and the key in {self.key_variable}"
                    raise ConnectionError(f"{self.url} refuses us ({why}): {hint}") from error
                if error.code not in _RETRY:
                    return Refusal(f"the endpoint refuses the question ({why})")
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                why = f"{type(error).__name__}: {error}"
        raise ConnectionError(
            f"{self.url} gave no answer ({why}); what was scored so far is kept, start again to go on"
        )


def _questions(edit: Edit) -> tuple[list[dict], list[dict]]:
    sources = [read_image(image) for image in edit.sources]
    edited = read_image(edit.edited)
    height, width = sources[0].shape[:2]
    if edited.shape != sources[0].shape:
        edited = np.asarray(Image.fromarray(edited).resize((width, height), Image.Resampling.BICUBIC))
    images = [*map(_image, sources), _image(edited)]
    return [*images, _text(SEMANTIC_PROMPT + edit.instruction)], [images[-1], _text(QUALITY_PROMPT)]


def _image(image: np.ndarray) -> dict:
    data = base64.b64encode(png_bytes(image)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _read(semantic: str | Refusal, quality: str | Refusal) -> Score:
    """Two answers -> a score on the 0..25 scale of sub-scores; invalid unless both hold two marks in 0..10."""
    parts, errors, reasons = [], [], []
    for name, text in (("SC", semantic), ("PQ", quality)):
        try:
            if isinstance(text, Refusal):
                raise InputError(text.why)
            marks, reason = _marks(text)
        except InputError as error:
            errors.append(f"{name}: {error}")
            continue
        parts.append([mark * SCORE_RANGE / 10 for mark in marks])
        reasons.append(reason)
    if errors:
        said = ["" if isinstance(text, Refusal) else text for text in (semantic, quality)]
        return Score(False, errors=tuple(errors), raw_sc=said[0], raw_pq=said[1])
    overall = Aggregation("min")(*parts)
    return Score(
        True,
        overall=overall.overall,
        reward=overall.reward,
        semantic=overall.semantic,
        quality=overall.quality,
        success=parts[0][0],
        no_overedit=parts[0][1],
        naturalness=parts[1][0],
        artifact_free=parts[1][1],
        reasoning=reasons[0],
        quality_reasoning=reasons[1],
        raw_sc=semantic,
        raw_pq=quality,
    )


def _marks(text: str) -> tuple[list[float], str]:
    start, end = text.find("{"), text.rfind("}")
    try:
        answer: Any = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON object: {error}") from error
    marks = answer.get("score") if isinstance(answer, dict) else None
    good = isinstance(marks, list) and len(marks) == 2
    if not good or any(isinstance(m, bool) or not isinstance(m, int | float) or not 0 <= m <= 10 for m in marks):
        raise InputError(f"want two marks in 0..10 under score, got {marks!r}")
    return [float(mark) for mark in marks], writable(str(answer.get("reasoning", "")))
