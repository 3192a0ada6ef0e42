"""What a user may plug in: a scorer, a normalizer, a language detector, a text hook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "document"]
"""Which side of a pair a text stands on."""


class SharedPrefix(Protocol):
    """Tokens with which all pairs of one query begin."""

    @property
    def key(self) -> bytes:
        """A digest of them: equal where the tokens are, and not empty."""

    @property
    def tokens(self) -> int:
        """How many they are."""


class EncodedPair(Protocol):
    """A pair as its scorer wants it, made by `Scorer.encode` and read by `Scorer.forward`.

    It may also have a ``prefix``: a `SharedPrefix`, or None. A scorer whose batches are not padded
    then computes each prefix once a batch at most, and pairs that share one travel together: a
    batch has up to ``batch_tokens`` of its pairs' own tokens and of further prefixes, and the first
    prefix.
    """

    @property
    def tokens(self) -> int:
        """Length in tokens with its prefix, at least 1: what the pair costs alone."""

    @property
    def truncated(self) -> bool:
        """Whether the document was cut to fit."""


PairT = TypeVar("PairT", bound=EncodedPair)


@runtime_checkable
class Scorer(Protocol[PairT]):
    """Turns pairs into logits, each logit from its pair alone.

    `encode` is called from many threads at once and must not change state that others see.
    `forward` and `close` are called by one thread at a time. A logit must not depend on the other
    pairs of its batch: it is cached and compared across requests.
    """

    @property
    def name(self) -> str:
        """Who answered, as shown in `Ranking.scorer`."""

    @property
    def identity(self) -> str:
        """Everything about this scorer that changes a logit, as part of every cache key.

        Weights and revision, precision, template, instruction, truncation, max_length.
        """

    @property
    def activation(self) -> Literal["sigmoid", "logit"]:
        """What the setting ``activation="auto"`` means for this scorer."""

    @property
    def languages(self) -> frozenset[str] | None:
        """ISO 639-1 codes of the query languages it knows, or None for any."""

    @property
    def batch_tokens(self) -> int:
        """Token budget of one batch where the user set none; a shared prefix comes on top."""

    @property
    def padded(self) -> bool:
        """Whether a batch costs ``pairs * longest`` tokens (True) or their sum (False)."""

    def encode(self, query: str, documents: Sequence[str]) -> Sequence[PairT]:
        """Encode one query with each document, in order."""

    def forward(self, pairs: Sequence[PairT]) -> Sequence[float | Exception] | NDArray[np.float32]:
        """Score one batch, which may mix queries; returns (pairs,) logits in the same order.

        An exception in the place of a logit fails that pair alone. One that is raised is no pair's:
        the batch is scored again in halves, to find whose it is.

        Raises:
            ScoringError: where the device or runtime failed.
        """

    def close(self) -> None:
        """Free what the scorer holds. Called once, after the last `forward`."""


AnyScorer = Scorer[Any]


@runtime_checkable
class InstructedScorer(Scorer[PairT], Protocol[PairT]):
    """A scorer that can be told what to look for, as most language models can."""

    @property
    def instruction(self) -> str | None:
        """What it looks for where nobody says anything; None if it takes no instruction."""

    def encode(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> Sequence[PairT]:
        """Encode one query with each document, in order; None is the scorer's own instruction."""


def takes_instruction(scorer: AnyScorer) -> bool:
    """Whether *scorer* can be told what to look for, which makes it an `InstructedScorer`.

    One that merely has an attribute ``instruction`` cannot: its ``encode`` must take one by name.
    """
    if not isinstance(scorer, InstructedScorer) or scorer.instruction is None:
        return False
    return _takes(scorer.encode, "instruction")


def _takes(function: Callable[..., object], name: str) -> bool:
    """Whether *function* takes an argument by that *name*."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Native code may not say what it takes.
        return False
    asked = parameters.get(name)
    if asked is not None:
        return asked.kind is not inspect.Parameter.POSITIONAL_ONLY
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


Until = Callable[[], float | None]
"""Says until when somebody waits, of `time.monotonic`; None for ever. Others may join meanwhile."""


@runtime_checkable
class DeadlineScorer(Scorer[PairT], Protocol[PairT]):
    """A scorer that can stop when nobody waits any more: one that waits for others itself."""

    def forward(
        self, pairs: Sequence[PairT], *, until: Until | None = None
    ) -> Sequence[float | Exception] | NDArray[np.float32]:
        """Score one batch, and give up what is not there when *until* says so; None is never.

        A `RerankTimeoutError` stands in the place of what was given up: it fails nobody, and where
        somebody has come to wait meanwhile, the pair is scored again.
        """


def takes_deadline(scorer: AnyScorer) -> bool:
    """Whether *scorer* can be told until when somebody waits, which makes it a `DeadlineScorer`."""
    return _takes(scorer.forward, "until")


class Normalizer(Protocol):
    """Returns the text that is scored in place of the given one."""

    def __call__(self, text: str, /) -> str:
        """Return the text to score in place of *text*."""


class LanguageDetector(Protocol):
    """Returns the ISO 639-1 code (lower case) of a text's language, or None where unsure."""

    def __call__(self, text: str, /) -> str | None:
        """Return the language of *text*."""


class TextHook(Protocol):
    """Sees every cleaned text and returns the text to score in its place.

    *language* is what the language detector said of *text*, None where unsure or where detection
    is off. A translator is such a hook.
    """

    def __call__(self, text: str, language: str | None, role: Role, /) -> str:
        """Return the text to score in place of *text*."""
