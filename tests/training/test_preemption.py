"""What signals do to a run: with something to save, with nothing, and while the main thread is busy."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from psynth_jax.training.preemption import SAVING, Preemption, preemption


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    # Other tests of this process may have left a handler that ends it in its own way.
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, default) for number, default in defaults.items()}
    yield
    assert {number: signal.getsignal(number) for number in defaults} == defaults
    assert signal.set_wakeup_fd(-1) == -1
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """As from outside: the handler has run when this returns."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "told_by"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_the_first_signal_saves(number: int, told_by: str) -> None:
    with preemption() as heard:
        heard.begin()
        assert not heard.told(1)
        send(number)
        assert heard.told(1) and heard.told_here and heard.told_by == told_by


def test_the_second_ctrl_c_stops_at_once() -> None:
    said: list[str] = []
    told = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with pytest.raises(KeyboardInterrupt), preemption(say) as heard:  # noqa: PT012
        heard.begin()
        send(signal.SIGINT)
        assert told.wait(60)
        assert heard.told(1)
        send(signal.SIGINT)
        pytest.fail("it goes on")
    assert said == [SAVING]


def test_sigterm_twice_still_saves() -> None:
    with preemption() as heard:
        heard.begin()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        assert heard.told_by == "terminated"


def test_ctrl_c_after_sigterm_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), preemption() as heard:  # noqa: PT012
        heard.begin()
        send(signal.SIGTERM)
        send(signal.SIGINT)


def test_with_nothing_to_save_the_first_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), preemption():
        send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_with_nothing_to_save_other_signals_end_the_process(number: int) -> None:
    with pytest.raises(SystemExit) as ended, preemption():
        send(number)
    assert ended.value.code == 143


def test_a_handler_from_before_ends_the_process_its_way() -> None:
    """The command line removes what is half written: with nothing to save it still does."""

    def ends(*_: object) -> None:
        raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, ends)
    try:
        with pytest.raises(SystemExit) as ended, preemption():
            send(signal.SIGTERM)
        assert ended.value.code == 7
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_busy_main_thread_is_not_waited_for() -> None:
    """It is in C, where no handler in Python can run: as in a compilation."""
    c = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(256)
    codes: list[int] = []

    def end_process(code: int) -> None:
        codes.append(code)
        c.pthread_mutex_unlock(mutex)

    with pytest.raises(KeyboardInterrupt), preemption(end_process=end_process):  # noqa: PT012
        c.pthread_mutex_lock(mutex)
        threading.Timer(0.2, send, [signal.SIGINT]).start()
        c.pthread_mutex_lock(mutex)  # until `end_process` was called
        pytest.fail("the handler has not run")
    assert codes == [130]


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption() as heard:
            heard.begin()
            send(signal.SIGHUP)
            assert not heard.told(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_nothing_is_heard() -> None:
    found: list[Preemption] = []

    def listen() -> None:
        with preemption() as heard:
            found.append(heard)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert not found[0].told(1)
