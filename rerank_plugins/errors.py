"""Every error that this package raises.

RerankError
├── ConfigError (ValueError)          a setting: which one, what is allowed, what was seen
├── InputError (ValueError)           an argument: which one, at which index
│   └── InputTypeError (TypeError)    the same, for a value of the wrong type
├── MissingExtraError (ImportError)   an optional package, with the pip command
├── ModelLoadError                    a model: what was tried, what to do next
├── ScoringError                      a scorer failed; ``retryable`` says whether to try again
│   ├── OutOfMemoryError              one pair alone does not fit into the memory there is
│   └── PluginError                   a function that was plugged in failed on a text
├── QueueFullError                    too much is waiting; ``retry_after_s`` says when to try again
├── RerankTimeoutError (TimeoutError) the deadline passed; the pairs left the queue
└── ClosedError                       the reranker was closed
"""

from __future__ import annotations

from typing import Final


class RerankError(Exception):
    """Base of every error that this package raises."""


class ConfigError(RerankError, ValueError):
    """A setting is unknown, out of range or at odds with another one."""


class InputError(RerankError, ValueError):
    """An argument cannot be ranked: the message names it and its index."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type: the message names it and its index."""


class MissingExtraError(RerankError, ImportError):
    """An optional package is not installed: the message holds the pip command.

    ``package`` is the package that is missing, ``extra`` the extra that installs it.
    """

    def __init__(self, *, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "rerank-plugins[{extra}]"'
        )
        self.package = package
        self.extra = extra
        self._needed_for = needed_for

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_missing_extra, (self.package, self.extra, self._needed_for)


def _rebuild_missing_extra(package: str, extra: str, needed_for: str) -> MissingExtraError:
    return MissingExtraError(package=package, extra=extra, needed_for=needed_for)


class ModelLoadError(RerankError):
    """A model could not be loaded: the message says what was tried and what to do.

    ``model`` is the name or folder that was asked for.
    """

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model = model
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot load {self.model!r}: {self.reason}"


class ScoringError(RerankError):
    """A scorer, or a function plugged into the data path, failed on a text.

    ``retryable`` is True where the same call may succeed later (a device that was busy, say).
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class OutOfMemoryError(ScoringError):
    """A pair does not fit into memory, not even alone: what fits was scored in smaller batches."""


class PluginError(ScoringError):
    """A function that was plugged into the data path failed on a text.

    No scorer is to blame, and none can answer without that text: no fallback is tried.
    """


class QueueFullError(RerankError):
    """More tokens are waiting than ``queue_tokens`` allows; nothing of the request was queued.

    ``retry_after_s`` estimates, in seconds, when there is room again: what waits beyond the bound
    by the measured speed of all replicas.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RerankTimeoutError(RerankError, TimeoutError):
    """The deadline of a request passed; those of its pairs that still waited left the queue."""


class ClosedError(RerankError):
    """The reranker was closed, before or during the call."""


_OUT_OF_MEMORY: Final = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
)
"""What allocators say of themselves: those of torch, CUDA, onnxruntime, C++ and Windows."""


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether a scorer failed for want of memory: the one place that knows foreign complaints."""
    if isinstance(exc, MemoryError | OutOfMemoryError):
        return True
    # By name, as torch is not imported to be asked.
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(exc).__mro__):
        return True
    text = words_of(exc).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)


def words_of(exc: BaseException) -> str:
    """Return what a foreign error says, whose ``str`` may itself fail."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001
        return "it has no message"


def first_line(exc: BaseException) -> str:
    """Return the first line of a foreign message; the rest is often a stack of its own."""
    return words_of(exc).strip().partition("\n")[0]
