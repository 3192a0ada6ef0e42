"""The engine on Ray: batches by Ray Data, the REST service by Ray Serve.

Names are loaded when they are used: Ray takes a while.
"""

from __future__ import annotations

from importlib import import_module

_HOME_OF = {"RayBatch": "batches", "ServeArgs": "serving", "build_app": "serving"}

__all__ = ["RayBatch", "ServeArgs", "build_app"]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
