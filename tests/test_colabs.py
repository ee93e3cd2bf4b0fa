"""The notebooks run from top to bottom in their fast setting, and define nothing."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


def code_cells(path):
    """Sources of the code cells, without the lines that only a notebook understands."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "committed without outputs"
            yield "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_of_its_own(path):
    for cell in code_cells(path):
        defined = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert not defined, ast.unparse(defined[0])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, one_device):
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # as in a clone, but what it writes goes elsewhere
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(code_cells(path)), encoding="utf-8")
    environment = one_device | {"SRJ_FAST": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "runs/colab/summary.json").read_text())
    assert "Row 1: " in (tmp_path / "runs/colab/report.html").read_text(), "what was asked stands below the pictures"
    assert summary["steps"] == 1 and str(summary["reward_first"]) in done.stdout


def test_there_is_a_notebook():
    assert NOTEBOOKS
