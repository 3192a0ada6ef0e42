"""OpenTelemetry spans of rerankers: one for each call, with a child for each of its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import MissingExtraError
from rerank_plugins.events import Observer
from rerank_plugins.stages import STAGES

try:
    from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer, set_span_in_context
except ModuleNotFoundError as exc:
    if exc.name not in ("opentelemetry", "opentelemetry.trace"):
        raise
    raise MissingExtraError(
        package="opentelemetry-api", extra="tracing", needed_for="rerank_plugins.tracing"
    ) from exc

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

    from rerank_plugins.events import RequestEvent

__all__ = ["TracingObserver"]

_NAME: Final = "rerank_plugins"

_ANSWERED: Final = frozenset({"ok", "fallback"})


class TracingObserver(Observer):
    """Makes a span of every call, with *tracer_provider* or the process's own.

    Its parent is the caller's current span. The children are as long as the call was in each stage
    and lie end to end in the order of the data path, though stages of a long request take turns.
    No attribute holds anything of a text.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._given = tracer_provider
        self._tracer = get_tracer(_NAME, tracer_provider=tracer_provider)

    def __reduce__(self) -> tuple[object, ...]:
        # A tracer holds threads and locks; the other process makes one of its own.
        return type(self), (() if self._given is None else (self._given,))

    def on_request(self, event: RequestEvent) -> None:
        """Make the spans of a call that has ended: in its caller's own context."""
        start = round(event.started_s * 1e9)
        span = self._tracer.start_span(
            "rerank", kind=SpanKind.INTERNAL, start_time=start, attributes=_attributes(event)
        )
        if event.outcome not in _ANSWERED and event.outcome != "cancelled":
            span.set_status(Status(StatusCode.ERROR, event.outcome))
        if span.is_recording():
            self._add_stages(span, event, start)
        span.end(start + round(event.duration_s * 1e9))

    def _add_stages(self, parent: Span, event: RequestEvent, start: int) -> None:
        context = set_span_in_context(parent)
        for stage in STAGES:
            if seconds := getattr(event.stages, stage):
                child = self._tracer.start_span(f"rerank {stage}", context, start_time=start)
                start += round(seconds * 1e9)
                child.end(start)


def _attributes(event: RequestEvent) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        f"{_NAME}.model": event.model,
        f"{_NAME}.scorer": event.scorer,
        f"{_NAME}.outcome": event.outcome,
        f"{_NAME}.pairs": event.pairs,
        f"{_NAME}.cached_pairs": event.cached,
        f"{_NAME}.tokens": event.tokens,
    }
    if event.error:
        found["error.type"] = event.error
    return found
