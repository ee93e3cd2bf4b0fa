import signal
import threading

import numpy as np
import pytest

from spatialreward_jax import processes
from spatialreward_jax.errors import InputError
from spatialreward_jax.recipes import RECIPES, load_recipe


@pytest.fixture
def python_handles_interrupts():
    """A process that a shell started in the background ignores SIGINT, and its children would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_first_signal_raises_a_flag_and_the_second_acts(python_handles_interrupts):
    said = []
    with processes.Interrupts(said.append) as interrupts:
        assert not interrupts.agreed() and interrupts.name == ""
        signal.raise_signal(signal.SIGINT)
        assert interrupts.agreed() and interrupts.name == "SIGINT" and "saving" in said[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_while_the_processes_agree_is_told_at_the_next_step(monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)

    def gather_interrupted(value):
        if not said:
            signal.raise_signal(signal.SIGTERM)
        return np.array([value, 0])

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather_interrupted)
    said = []
    with processes.Interrupts(said.append) as interrupts:
        assert not interrupts.agreed() and len(said) == 1
        assert interrupts.agreed() and interrupts.name == "SIGTERM"


def test_a_signal_of_another_process_is_named(monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    other = np.array([int(signal.SIGTERM)])
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda value: np.append(value, other))
    with processes.Interrupts() as interrupts:
        assert interrupts.agreed() and interrupts.name == "SIGTERM"


def test_nothing_is_caught_outside_of_the_main_thread():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with processes.Interrupts():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 0, 0), "needs --num_processes"),
        (("localhost:1", 2, 2), "from 0 to num_processes - 1"),
        (("", 2, -1), "need --coordinator"),
        (("", 0, 0), "need --coordinator"),
    ],
)
def test_process_flags_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        processes.initialize(*arguments)


def test_a_single_machine_needs_nothing(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    processes.initialize()


def test_unknown_recipe():
    assert "flow_grpo" in RECIPES
    with pytest.raises(InputError, match=r"task 'nope' is unknown; choose one of .*flow_grpo"):
        load_recipe("nope")
