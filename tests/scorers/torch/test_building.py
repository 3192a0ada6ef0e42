"""Building a model does not reach into the forwards of others."""

from __future__ import annotations

import os
import threading

import pytest

from rerank_plugins.scorers.torch.building import BUILDING, Building


def test_a_forward_that_was_disturbed_is_run_again() -> None:
    building = Building()
    runs = []

    def run() -> int:
        runs.append(1)
        if len(runs) == 1:
            with building:
                pass
        return len(runs)

    assert building.undisturbed(run) == 2


def test_a_forward_during_a_building_counts_only_after_it() -> None:
    building = Building()
    begun, end = threading.Event(), threading.Event()

    def build() -> None:
        with building:
            begun.set()
            end.wait(10)

    builder = threading.Thread(target=build)
    builder.start()
    begun.wait(10)
    built = []

    def run() -> bool:
        built.append(end.is_set())
        # Ends the building only once a forward has run inside of it.
        end.set()
        return built[-1]

    assert building.undisturbed(run)
    builder.join()
    assert built[0] is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_may_build_though_its_parent_was_building() -> None:
    with BUILDING:
        child = os.fork()
        if child == 0:
            free = BUILDING._lock.acquire(timeout=5)
            os._exit(0 if free else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
