"""The launch scripts against stand-ins for gcloud, xpk and kubectl that write down how they were called."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sysconfig
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
POD = ("--name=srj", "--zone=us-east5-b")
GKE = ("--cluster=c", "--zone=us-east5-b")
WORKER = "bash spatialreward_jax/launch/worker.sh"
TRAIN = ("--", "train", "--config=configs/grpo.py:omnigen2", "--workdir=/mnt/bucket/run", "--config.note=it's a b")
REMOTE = "train --config=configs/grpo.py:omnigen2 --workdir=/mnt/bucket/run '--config.note=it'\\''s a b'"

_STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >>"$CALLS"
printf '\\n\\0' >>"$CALLS"
case "$*" in
*" describe "*) head -n 1 "$STATES"; sed -i 1d "$STATES" ;;
*" delete "*) exit "${DELETE_STATUS:-0}" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """-> call(script, *arguments, states=...) -> (finished process, calls of the stand-ins)."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("gcloud", "xpk", "kubectl", "git"):
        (bin_ / name).write_text(_STAND_IN)
        (bin_ / name).chmod(0o755)

    def call(script, *arguments, states=(), **env):
        calls, file = tmp_path / "calls", tmp_path / "states"
        calls.write_text("")
        file.write_text("".join(f"{state}\n" for state in states))
        env = os.environ | {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "STATES": str(file),
            "POLL_SECONDS": "0",
            "TMPDIR": str(tmp_path),
            **env,
        }
        done = subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True, env=env, timeout=60)
        lines = calls.read_text().split("\n\0")[:-1]
        return done, [line.rstrip("\0").split("\0") for line in lines]

    return call


def _commands(done):
    """What --dry_run printed, read back by a shell's rules."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ((), "tpu-vm create srj --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e"),
        (("--spot",), "tpu-vm create srj --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot"),
        (
            ("--queued", "--spot"),
            "queued-resources create srj --node-id=srj --accelerator-type=v6e-16"
            " --runtime-version=v2-alpha-tpuv6e --spot",
        ),
        (("--runtime=other",), "tpu-vm create srj --accelerator-type=v6e-16 --version=other"),
    ],
)
def test_create(launch, flags, want):
    done, calls = launch("pod.sh", "create", *POD, "--type=v6e-16", *flags)
    assert done.returncode == 0, done.stderr
    assert calls == [f"gcloud compute tpus {want} --zone=us-east5-b".split()]


@pytest.mark.parametrize(
    ("type_", "version"),
    [("v5litepod-32", "v2-alpha-tpuv5-lite"), ("v5p-16", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_runtime_follows_the_type(launch, type_, version):
    _, ((*_, given, _zone),) = launch("pod.sh", "create", *POD, f"--type={type_}")
    assert given == f"--version={version}"


def test_setup_and_run_reach_all_workers(launch):
    done, calls = launch("pod.sh", "setup", *POD, "--bucket=results")
    assert done.returncode == 0, done.stderr
    archive, copy, ssh = calls
    assert archive[0] == "git" and archive[-1] == "HEAD"
    assert copy[4] == "scp" and copy[5:8] == [
        archive[-2].removeprefix("--output="),
        "srj:spatialreward_jax.tgz",
        "--worker=all",
    ]
    assert ssh[4:7] == ["ssh", "srj", "--worker=all"] and ssh[7].endswith("worker.sh setup results")
    _, ((*_, command, _zone),) = launch("pod.sh", "run", *POD, *TRAIN)
    assert command == f"--command=bash spatialreward_jax/launch/worker.sh start {REMOTE}"
    assert shlex.split(command.split("start ", 1)[1])[-1] == "--config.note=it's a b"


def test_tail_stop_status_fetch_delete(launch):
    tpu = "gcloud compute tpus"
    zone = "--zone=us-east5-b"
    for arguments, want in (
        (("tail", "--worker=3"), f"{tpu} tpu-vm ssh srj --worker=3 '--command=tail -n 50 -F run.log' {zone}"),
        (
            ("stop",),
            f"{tpu} tpu-vm ssh srj --worker=all '--command=bash spatialreward_jax/launch/worker.sh stop' {zone}",
        ),
        (("status",), f"{tpu} tpu-vm describe srj '--format=value(state)' {zone}"),
        (("fetch", "--from=run", "--to=here"), f"{tpu} tpu-vm scp --recurse srj:run here --worker=0 {zone}"),
        (("fetch", "--from=run", "--to=here", "--bucket=b"), "gcloud storage rsync --recursive gs://b/run here"),
        (("delete",), f"{tpu} tpu-vm delete srj --quiet {zone}"),
        (("delete", "--queued"), f"{tpu} queued-resources delete srj --force --quiet {zone}"),
        (("delete", "--project=p"), f"{tpu} tpu-vm delete srj --quiet {zone} --project=p"),
    ):
        done, calls = launch("pod.sh", *arguments, *POD)
        assert done.returncode == 0, done.stderr
        assert calls == [shlex.split(want)]


def test_wait_polls_until_ready(launch):
    done, calls = launch("pod.sh", "wait", *POD, states=["CREATING", "", "READY"])
    assert done.returncode == 0 and len(calls) == 3
    done, _ = launch("pod.sh", "wait", *POD, "--queued", states=["WAITING_FOR_RESOURCES", "SUSPENDED"])
    assert done.returncode == 2 and "srj is SUSPENDED: delete it and create it again" in done.stderr


def test_resume_after_a_preemption(launch):
    """Delete may find nothing; then everything anew, with the same command: its checkpoints are in the bucket."""
    flags = (*POD, "--type=v6e-16", "--spot", "--queued", "--bucket=results")
    states = ["PROVISIONING", "ACTIVE"]
    done, calls = launch("pod.sh", "resume", *flags, *TRAIN, states=states, DELETE_STATUS="1")
    assert done.returncode == 0, done.stderr
    verbs = [" ".join(call[3:5]) if call[0] == "gcloud" else call[0] for call in calls]
    assert verbs == [
        "queued-resources delete",
        "queued-resources create",
        "queued-resources describe",
        "queued-resources describe",
        "git",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("pod.sh", ("create", *POD, "--type=v6e-16", "--spot", "--queued", "--project=p")),
        ("pod.sh", ("setup", *POD)),
        ("pod.sh", ("run", *POD, *TRAIN)),
        ("pod.sh", ("tail", *POD)),
        ("pod.sh", ("stop", *POD)),
        ("pod.sh", ("fetch", *POD, "--from=a b", "--to=c")),
        ("pod.sh", ("delete", *POD)),
        ("gke.sh", ("create", *GKE, "--type=v5litepod-16", "--spot", "--slices=2")),
        ("gke.sh", ("attach", *GKE, "--bucket=b")),
        ("gke.sh", ("run", *GKE, "--type=v6e-16", "--name=n", *TRAIN)),
        ("gke.sh", ("status", *GKE)),
        ("gke.sh", ("tail", "--name=n")),
        ("gke.sh", ("stop", *GKE, "--name=n")),
        ("gke.sh", ("fetch", "--bucket=b", "--from=run", "--to=here")),
        ("gke.sh", ("delete", *GKE)),
    ],
)
def test_dry_run_prints_exactly_what_would_run(launch, script, arguments):
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    printed, none = launch(script, *arguments[:cut], "--dry_run", *arguments[cut:])
    assert none == []
    done, calls = launch(script, *arguments)
    assert done.returncode == 0, done.stderr
    assert _commands(printed) == calls


def test_gke(launch):
    _, calls = launch("gke.sh", "create", *GKE, "--type=v5litepod-16", "--slices=2", "--reservation=r")
    want = "xpk cluster create --tpu-type=v5litepod-16 --num-slices=2 --reservation=r --cluster=c --zone=us-east5-b"
    assert calls == [want.split()]
    _, ((*call,),) = launch("gke.sh", "run", *GKE, "--type=v6e-16", "--name=n", "--restarts=9", *TRAIN)
    assert call[:4] == ["xpk", "workload", "create", "--workload=n"]
    assert "--max-restarts=9" in call and f"--script-dir={LAUNCH.parent}" in call
    command = next(word for word in call if word.startswith("--command="))
    assert command == f"--command=pip install --quiet -e '.[tpu]' && exec python -m spatialreward_jax.{REMOTE}"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("pod.sh", ("create", *POD), "--type=... is missing"),
        ("pod.sh", ("create", "--zone=z"), "--name=... is missing"),
        ("pod.sh", ("create", *POD, "--type=h100-8"), "no runtime known for --type=h100-8"),
        ("pod.sh", ("create", "--name=Bad_name", "--zone=z"), "lower-case letters"),
        ("pod.sh", ("launch", *POD), "unknown command 'launch'"),
        ("pod.sh", ("create", *POD, "--sopt"), "unknown flag --sopt"),
        ("pod.sh", ("create", *POD, "spot"), "unexpected argument 'spot'"),
        ("pod.sh", ("run", *POD), "give the program and its flags after --"),
        ("pod.sh", ("run", *POD, "--", "../x"), "is no program"),
        ("pod.sh", ("resume", *POD, "--type=v6e-8"), "give the program and its flags after --"),
        ("gke.sh", ("create", "--type=v6e-8"), "--cluster=... is missing"),
        ("gke.sh", ("run", *GKE, "--type=v6e-8", *TRAIN), "--name=... is missing"),
    ],
)
def test_mistakes_stop_before_any_call(launch, script, arguments, message):
    done, calls = launch(script, *arguments)
    assert done.returncode == 2 and calls == []
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["pod.sh", "gke.sh"])
def test_help(launch, script):
    done, calls = launch(script, "--help")
    assert done.returncode == 0 and calls == [] and f"launch/{script} create" in done.stdout


# ---------------------------------------------------------------------------------------------------------- worker


@pytest.fixture
def worker(tmp_path):
    """-> call(*arguments, endpoints=..., number=...): worker.sh with a home, a metadata server and a Python."""
    bin_, home = tmp_path / "bin", tmp_path / "home"
    (home / "venv" / "bin").mkdir(parents=True)
    bin_.mkdir()
    python = home / "venv" / "bin" / "python"
    python.write_text(
        '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\ntrap "echo saved; exit 0" TERM\nwhile true; do sleep 0.05; done\n'
    )
    curl = bin_ / "curl"
    curl.write_text(
        '#!/usr/bin/env bash\ncase "$*" in\n*worker-network-endpoints) [[ -n $ENDPOINTS ]] && echo "$ENDPOINTS" ;;\n'
        '*agent-worker-number) echo "$NUMBER" ;;\nesac\n'
    )
    for path in (python, curl):
        path.chmod(0o755)

    def call(*arguments, endpoints="", number="0"):
        env = os.environ | {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "HOME": str(home),
            "ENDPOINTS": endpoints,
            "NUMBER": number,
        }
        command = ["bash", LAUNCH / "worker.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=30)

    yield call, home
    call("stop")


def _log(home, until):
    for _ in range(200):
        text = (home / "run.log").read_text() if (home / "run.log").exists() else ""
        if until in text:
            return text.splitlines()
        time.sleep(0.02)
    raise AssertionError(f"{until!r} never came: {text!r}")


def test_a_worker_of_several_is_told_where_the_first_one_listens(worker):
    call, home = worker
    endpoints = ",".join(f"unknown:unknown:10.0.0.{n}" for n in (7, 8, 9, 10))
    done = call("start", "train", "--workdir=/mnt/bucket/run", "--config.note=a b", endpoints=endpoints, number="2")
    assert done.returncode == 0, done.stderr
    assert _log(home, "process_id") == [
        "-m",
        "spatialreward_jax.launch",
        "train",
        "--workdir=/mnt/bucket/run",
        "--config.note=a b",
        "--coordinator=10.0.0.7:8476",
        "--num_processes=4",
        "--process_id=2",
    ]


def test_a_single_worker_runs_alone_once_and_stops_when_asked(worker):
    call, home = worker
    assert call("start", "train", "--workdir=w", endpoints="unknown:unknown:10.0.0.7").returncode == 0
    assert _log(home, "--workdir=w") == ["-m", "spatialreward_jax.launch", "train", "--workdir=w"]
    again = call("start", "train", "--workdir=w")
    assert again.returncode == 2 and "already running" in again.stderr
    assert "asked process" in call("stop").stdout
    assert _log(home, "saved")[-1] == "saved"
    for _ in range(100):
        done = call("stop")
        if "runs nothing" in done.stdout:
            break
        time.sleep(0.02)
    assert "runs nothing" in done.stdout
    assert call("bogus").returncode == 2


def test_shellcheck_is_clean():
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    program = shutil.which("shellcheck", path=places)
    assert program, "shellcheck is missing: install the `test` extra"
    done = subprocess.run([program, "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout
