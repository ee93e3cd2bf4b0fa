"""Own wording, folders of wording, and the import of the official wording from a clone."""

import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.import_templates import import_templates
from spatialreward_jax.reward.templates import SHIPPED, load_templates, save_templates

SERVER = '''
SC_PROMPT_TEMPLATE = """Look: {{"score": [{{id}}]}} 0 to {score_range}
{instruction}"""
PQ_PROMPT_TEMPLATE = """{{{{ "score" }}}} {score_range} """
raise SystemExit("never executed")
'''
BENCH = '''
SC_PROMPT_SINGLE_IMAGE = """One {{x}}: {instruction}
"""
SC_PROMPT_MULTI_IMAGE = "Of {num_input_images}: {instruction}"
PQ_PROMPT = """{{ "score" }} 25\\n"""
'''


@pytest.fixture
def clone(tmp_path):
    for path, text in (
        ("example/reward/server/spatial_reward_scorer.py", SERVER),
        ("eval/MMRB2/dataset.py", BENCH),
    ):
        file = tmp_path / "clone" / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return tmp_path / "clone"


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir()))
def test_shipped_sets(name):
    templates = load_templates(name)
    sc, pq = templates.sc_text("turn {score_range} <b> red", 1), templates.pq_text()
    assert "turn {score_range} <b> red" in sc  # what a user writes is never filled in
    assert sc != pq
    assert templates.id.startswith(f"{name}@") and templates.id == load_templates(name).id


def test_default_wording_says_how_to_answer():
    templates = load_templates("default")
    sc, pq = templates.sc_text("turn it red", 1), templates.pq_text()
    for key in ("edit_region", "reasoning", "score", "bbox_2d", "<|bbox_0|>", "<|global|>", "25"):
        assert key in sc
    assert '"reasoning"' in pq and '"score"' in pq and "edit_region" not in pq


def test_several_sources_have_their_own_wording():
    templates = load_templates("default")
    assert templates.sc_text("x", 3) != templates.sc_text("x", 1)
    assert "first 3 images" in templates.sc_text("x", 3)
    compact = load_templates("compact")
    assert compact.sc_text("x", 3) == compact.sc_text("x", 1)


def test_import_keeps_what_is_sent(clone, tmp_path):
    import_templates(clone, tmp_path / "out")
    server, bench = (load_templates(tmp_path / "out" / name) for name in ("server", "bench"))
    sent = _literals(SERVER)
    assert server.sc_text("do it", 1) == sent["SC_PROMPT_TEMPLATE"].format(score_range=25, instruction="do it")
    assert server.pq_text() == sent["PQ_PROMPT_TEMPLATE"].format(score_range=25) == '{{ "score" }} 25 '
    sent = _literals(BENCH)
    assert bench.sc_text("a {x}", 1) == sent["SC_PROMPT_SINGLE_IMAGE"].format(instruction="a {x}")
    assert bench.sc_text("a", 2) == sent["SC_PROMPT_MULTI_IMAGE"].format(instruction="a", num_input_images=2)
    assert bench.pq_text() == sent["PQ_PROMPT"]


def test_import_refuses_what_it_cannot_keep(clone, tmp_path):
    file = clone / "eval/MMRB2/dataset.py"
    for text, why in (
        ("SC = 1", "assigns no string to SC_PROMPT_SINGLE_IMAGE"),
        (BENCH.replace("{instruction}", "{task}"), "asks for task"),
        (BENCH.replace("{{x}}", "{{instruction}}"), "plain braces"),
        ("def (", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=why):
            import_templates(clone, tmp_path / "out")
    with pytest.raises(InputError, match="is no folder"):
        import_templates(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders(tmp_path):
    save_templates(load_templates("default"), tmp_path / "mine")
    mine = load_templates(tmp_path / "mine")
    assert mine.id.split("@") == ["mine", load_templates("default").id.split("@")[1]]
    (tmp_path / "mine" / "sc.txt").write_text("nothing asked")
    with pytest.raises(InputError, match="never says"):
        load_templates(tmp_path / "mine")
    (tmp_path / "mine" / "pq.txt").unlink()
    with pytest.raises(InputError, match=r"lacks pq\.txt"):
        load_templates(tmp_path / "mine")
    with pytest.raises(InputError, match="compact, default"):
        load_templates("unknown")


def _literals(source):
    scope = {}
    exec(source.split("raise")[0], scope)
    return {name: value for name, value in scope.items() if isinstance(value, str) and name in source}
