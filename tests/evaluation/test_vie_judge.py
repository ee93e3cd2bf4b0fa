"""The VIEScore judge against a local stand-in endpoint."""

import contextlib
import dataclasses
import http.server
import json
import threading

import numpy as np
import pytest
from evaluation_data import cell, write_parquet

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import evaluate, gedit
from spatialreward_jax.evaluation.vie_judge import VIEJudge
from spatialreward_jax.io.images import write_png
from spatialreward_jax.reward.types import Edit


@contextlib.contextmanager
def _endpoint(reply):
    """Serves reply(request body, number of the request) -> (status, text of the answer)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            status, text = reply(body, len(seen))
            data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _edit():
    return Edit(np.zeros((8, 12, 3), np.uint8), np.full((16, 16, 3), 200, np.uint8), "make it blue")


def _marks(body, _):
    images = sum(part["type"] == "image_url" for part in body["messages"][0]["content"])
    scores = [8, 5] if images == 2 else [9, 10]
    return 200, f'Here: {{"reasoning": "so", "score": {scores}}}'


def test_scores_are_vie_minima(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with _endpoint(_marks) as (url, seen):
        (score,) = VIEJudge(url, "some-vlm").score([_edit()])
    assert score.valid and score.success == 20 and score.no_overedit == 12.5 and score.artifact_free == 25
    assert score.overall == pytest.approx((5 * 9) ** 0.5)
    assert {path for path, _, _ in seen} == {"/v1/chat/completions"} and seen[0][1] == "Bearer a-key"
    texts = [part["text"] for _, _, body in seen for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert sum(text.endswith("make it blue") for text in texts) == 1


def test_unreadable_marks_are_invalid():
    with _endpoint(lambda body, n: (200, '{"score": [11, 3]}')) as (url, _):
        (score,) = VIEJudge(url, "m", workers=1).score([_edit()])
    assert not score.valid and score.overall is None and "two marks in 0..10" in score.errors[0]


def test_a_busy_endpoint_is_asked_again():
    with _endpoint(lambda body, n: (503, "") if n == 1 else _marks(body, n)) as (url, seen):
        (score,) = VIEJudge(url, "m", workers=1, pause=0).score([_edit()])
    assert score.valid and len(seen) == 3


def test_a_refusing_endpoint_is_an_error():
    with _endpoint(lambda body, n: (401, "")) as (url, seen), pytest.raises(ConnectionError, match="HTTP 401"):
        VIEJudge(url, "m", workers=1, pause=0).score([_edit()])
    asked = [json.dumps(body) for _, _, body in seen]
    assert asked and len(set(asked)) == len(asked)  # a refusal is final: no question is asked again


def test_a_refused_question_is_an_invalid_answer_and_the_rest_goes_on():
    refuse = lambda body, n: (400, "") if "forbidden" in json.dumps(body) else _marks(body, n)
    with _endpoint(refuse) as (url, _):
        bad, good = VIEJudge(url, "m", workers=1).score(
            [dataclasses.replace(_edit(), instruction="forbidden"), _edit()]
        )
    assert good.valid and not bad.valid and bad.errors == ("SC: the endpoint refuses the question (HTTP 400)",)


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(InputError, match="want an address like"):
        VIEJudge("localhost:8000/v1", "m")


def test_identity_changes_with_the_wording(monkeypatch):
    from spatialreward_jax.evaluation import vie_judge

    before = VIEJudge("http://u", "m").identity
    monkeypatch.setattr(vie_judge, "QUALITY_PROMPT", "another wording")
    assert VIEJudge("http://u", "m").identity.template != before.template


def test_gedit_is_scored_by_an_endpoint(tmp_path):
    """Images made before, marks from the endpoint, figures and manifest; started again it asks nothing."""
    rows = [
        {"key": f"k{n}", "task_type": "color_alter", "instruction": "make it blue", "instruction_language": "en"}
        | {"input_image": cell(3), "Intersection_exist": True}
        for n in range(2)
    ]
    write_parquet(tmp_path / "data.parquet", rows)
    for n in range(2):
        write_png(tmp_path / f"images/fullset/color_alter/en/k{n}.png", np.full((16, 24, 3), 90 * n, np.uint8))
    with _endpoint(_marks) as (url, seen):
        judge = VIEJudge(url, "some-vlm")
        given = (gedit.benchmark(tmp_path / "images"), tmp_path / "data.parquet", tmp_path / "out", judge)
        results = evaluate(*given)
        assert len(seen) == 4 and evaluate(*given) == results and len(seen) == 4
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    assert (figures["semantics"], figures["quality"]) == (5, 9)
    assert figures["overall"] == figures["judge"] == pytest.approx(45**0.5, abs=1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["model"] == "some-vlm" and manifest["identity"] == results["identity"]
