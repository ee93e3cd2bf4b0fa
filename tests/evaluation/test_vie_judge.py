"""The VIEScore judge against a local stand-in endpoint."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

from spatialreward_jax.evaluation.vie_judge import VIEJudge
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
    assert len(seen) == 2


def test_identity_changes_with_the_wording(monkeypatch):
    from spatialreward_jax.evaluation import vie_judge

    before = VIEJudge("u", "m").identity
    monkeypatch.setattr(vie_judge, "QUALITY_PROMPT", "another wording")
    assert VIEJudge("u", "m").identity.template != before.template
