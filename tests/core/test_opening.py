"""Opening a scorer for callers that wait only so long."""

from __future__ import annotations

import threading
import time

import pytest

from rerank_plugins.errors import ModelLoadError, RerankTimeoutError
from rerank_plugins.opening import Opener

HANG_S = 60.0


def soon(seconds: float = HANG_S) -> float:
    return time.monotonic() + seconds


def test_an_opening_is_waited_for() -> None:
    opened = []
    Opener("big", lambda: opened.append(1)).wait(soon())

    assert opened == [1]


def test_whoever_is_late_leaves_the_opening_to_the_next() -> None:
    go_on, begun = threading.Event(), []

    def open_it() -> None:
        begun.append(1)
        assert go_on.wait(HANG_S)

    opener = Opener("big", open_it)
    for _ in range(3):
        with pytest.raises(RerankTimeoutError, match="big was not open"):
            opener.wait(soon(0.01))
    go_on.set()
    opener.wait(soon())

    assert begun == [1]


def test_a_failed_opening_is_tried_again_by_the_next() -> None:
    begun = []

    def open_it() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise ModelLoadError("big", "no such folder")

    opener = Opener("big", open_it)
    with pytest.raises(ModelLoadError):
        opener.wait(soon())
    opener.wait(soon())

    assert len(begun) == 2


def test_each_waiting_caller_has_an_error_of_its_own() -> None:
    go_on, together = threading.Event(), threading.Barrier(3)

    def open_it() -> None:
        assert go_on.wait(HANG_S)
        raise ModelLoadError("big", "no such folder") from LookupError("the reason")

    opener, errors = Opener("big", open_it), []

    def wait() -> None:
        together.wait(HANG_S)
        try:
            opener.wait(soon())
        except ModelLoadError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    together.wait(HANG_S)
    # Both wait by now, or begin to before this one ends.
    with pytest.raises(RerankTimeoutError):
        opener.wait(soon(0.1))
    go_on.set()
    for thread in threads:
        thread.join(HANG_S)

    first, second = errors
    assert first is not second
    assert str(first) == str(second) == "cannot load 'big': no such folder"
    assert isinstance(first.__cause__, LookupError)
