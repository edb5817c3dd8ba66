"""A signal ends a command wherever it finds it."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator

import pytest

from calogen.cli.terminal import Stopped, stoppable


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own SIGINT: jobs in the background are begun with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("callback", [False, True])
def test_work_ends_even_where_a_signal_comes_in_a_callback_that_loses_exceptions(
    number: signal.Signals, callback: bool
) -> None:
    class Thing:
        pass

    def send(_: object = None) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.001)  # the handler runs here

    def work() -> None:
        with stoppable():
            if callback:
                things.clear()
            else:
                send()
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM), sys.unraisablehook
    things = [Thing()]
    watched = weakref.ref(things[0], send)
    with pytest.raises(KeyboardInterrupt) as found:
        work()
    assert watched is not None
    if isinstance(found.value, Stopped):
        assert found.value.number == number
    else:
        assert number == signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM), sys.unraisablehook) == before
