"""pyarrow, imported where it is used, and what it says of files that it cannot read."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rerank_plugins.errors import InputError, MissingExtraError, first_line
from rerank_plugins.evaluation.lines import readable

if TYPE_CHECKING:
    from collections.abc import Iterator


def import_arrow() -> Any:  # noqa: ANN401  pyarrow has no types
    """Return pyarrow, with its submodule ``parquet`` loaded.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow as pa

        # A submodule is loaded by its own name.
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError(
            package="pyarrow", extra="batch", needed_for="rerank-plugins batch"
        ) from exc
    return pa


@contextmanager
def readable_parquet(path: object) -> Iterator[None]:
    """Turn what is said against a Parquet file into an `InputError` that begins with its path."""
    arrow = import_arrow()
    with readable(path):
        try:
            yield
        except arrow.ArrowException as exc:
            raise InputError(f"{path}: cannot be read as Parquet ({first_line(exc)})") from None
