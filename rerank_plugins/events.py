"""What happened, as observers are told of it: frozen values, times in seconds.

No event holds a text: neither a query nor a document.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """A scorer was opened, or could not be.

    ``model`` is the name that was configured, ``scorer`` what opened calls itself, "" where nothing
    did. ``error`` is the name of the exception's class, "" where there was none.
    """

    model: str
    scorer: str
    duration_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class BatchEvent:
    """One forward pass over a batch, by replica ``replica`` (from 0) of ``model``.

    ``tokens`` counts what was computed without padding, ``tokens_padded`` the padding beside it.
    ``wait_s`` is how long the oldest of its pairs had been queued, ``duration_s`` the forward pass.
    ``error`` is "" where it gave logits, else "out_of_memory" or the name of the exception's class.
    """

    model: str
    scorer: str
    replica: int
    pairs: int
    tokens: int
    tokens_padded: int
    wait_s: float
    duration_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds that a request spent in each stage; together they are its duration.

    ``open`` to ``encode`` are its own work: opening the model, which only the first request does,
    cleaning and checking texts, asking the pair cache, making tokens. While it works, no time
    counts as waiting. ``queue`` is what else passed until the first batch with one of its pairs
    began: waiting for a thread, for room in the queue and for its turn. ``forward`` is what passed
    from then until its last pair was answered, ``finish`` from there until the call ended.
    """

    open: float = 0.0
    clean: float = 0.0
    look_up: float = 0.0
    encode: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    finish: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """One call of ``rank``, ``score`` or their async twins has ended.

    ``model`` is the configured one, ``scorer`` who answered: "" where nobody did, names parted by
    commas where queries of ``score`` went to several. ``outcome`` is "ok", "fallback" or, for a
    call that raised, "error", "timeout", "queue_full", "cancelled", "closed" or "invalid".
    ``error`` is the name of the exception's class: of the one raised, or of the one that made it
    fall back. ``pairs`` counts what was given, ``cached`` those of them that a cache
    answered, ``tokens`` what was encoded for this call: neither cached pairs nor those that another
    call was scoring already. ``started_s`` is the `time.time` of its start.
    """

    model: str
    scorer: str
    outcome: str
    pairs: int
    cached: int
    tokens: int
    started_s: float
    duration_s: float
    stages: StageSeconds = field(default_factory=StageSeconds)
    error: str = ""


@dataclass(frozen=True, slots=True)
class SwitchEvent:
    """The circuit breaker of ``model`` changed its state: "closed", "open" or "half_open".

    While it is open, callers that may fall back do so without asking the model. ``error`` is the
    name of the class of the exception that opened it.
    """

    model: str
    state: str
    error: str = ""


class Observer:
    """Is told what happens; override what you want to hear.

    The methods are called from many threads and from event loops, at the end of what they tell of:
    they must be quick, and must not call the reranker. What they raise is logged, once for each
    method, and changes nothing else. An observer that holds its reranker keeps it from being freed
    before it is closed.
    """

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # What copies of a reranker see belongs to one account.
        return self

    def on_load(self, event: LoadEvent) -> None:
        """Hear that a scorer was opened, or could not be."""

    def on_batch(self, event: BatchEvent) -> None:
        """Hear of a batch."""

    def on_request(self, event: RequestEvent) -> None:
        """Hear that a request has ended."""

    def on_switch(self, event: SwitchEvent) -> None:
        """Hear that a model's circuit breaker changed its state."""
