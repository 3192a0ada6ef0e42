"""A Ray of this machine alone, once for each module that asks for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Start Ray on two cores; its workers import what this process does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = pytest.importorskip("ray", reason="needs Ray")
        pytest.importorskip("ray.data", reason="needs Ray Data")
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
            )
        except Exception as exc:  # noqa: BLE001
            pytest.skip(f"Ray does not start here: {exc}")
    yield ray
    ray.shutdown()
