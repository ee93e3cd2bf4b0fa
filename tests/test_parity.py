"""The parity program from outside: exit status, table, JSON, and its one-line errors."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest


def parity(*arguments):
    command = [sys.executable, "-m", "spatialreward_jax.parity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path, goldens):
    for name in ("goldens.json", "reward.json"):
        shutil.copy(goldens / name, tmp_path)
    return tmp_path


def test_passes_then_fails(folder, tmp_path_factory):
    report = tmp_path_factory.mktemp("out") / "report.json"
    good = parity(folder, f"--json={report}")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "0 rows failed" in good.stdout
    rows = json.loads(report.read_text())
    assert rows["ok"] is True
    assert {"file", "array", "status", "max_error", "tolerance", "ok", "note"} == set(rows["rows"][0])
    np.savez(folder / "unknown.npz", x=1)
    bad = parity(folder, f"--json={report}", "--failures")
    assert bad.returncode == 1
    assert "unknown.npz" in bad.stdout and "no check knows this file" in bad.stdout
    assert "reward.json" not in bad.stdout
    assert json.loads(report.read_text())["ok"] is False


def test_errors_are_one_line(tmp_path):
    for arguments, message in (((tmp_path,), "no goldens.json"), ((), "no folder given"), ((tmp_path, "x"), "'x'")):
        out = parity(*arguments)
        assert out.returncode == 2
        assert message in out.stderr and "Traceback" not in out.stderr
