"""What a test leaves behind would keep the process from ending, after every test has passed. It fails the test that left it, not the run."""

from __future__ import annotations

import faulthandler
import multiprocessing
import sys
import threading
from collections.abc import Iterator

import pytest

JOIN_S = 30.0
EXIT_S = 60.0
"""How long the interpreter may take to end after the last test; then every thread's stack is printed and the run fails."""

OF_THE_SESSION = ("drop-databases",)
"""Threads of session fixtures, which may begin with whichever test asks for them first."""


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Threads and child processes of the test that are still alive after it (daemons aside) fail it."""
    before = set(threading.enumerate())
    yield
    new = [thread for thread in threading.enumerate() if thread not in before and not thread.name.startswith(OF_THE_SESSION)]
    left = [thread for thread in new if not thread.daemon and not _ends(thread)]
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
        child.join(JOIN_S)
    if left or children:
        pytest.fail(
            f"left behind: threads {[thread.name for thread in left]}, processes {[child.name for child in children]}", pytrace=False
        )


def _ends(thread: threading.Thread) -> bool:
    thread.join(JOIN_S)
    return not thread.is_alive()


def pytest_unconfigure() -> None:
    """Bound what comes after the last test."""
    faulthandler.dump_traceback_later(EXIT_S, exit=True, file=sys.__stderr__)
