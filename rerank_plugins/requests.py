"""What callers ask for: checked on the way in, each complaint naming argument and index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, TypeVar, overload

from rerank_plugins.candidates import ALL, Choice, Chosen
from rerank_plugins.errors import InputError, InputTypeError, PluginError
from rerank_plugins.jobs import Job
from rerank_plugins.options import Duplicates, Priority
from rerank_plugins.settings import LONGEST_TIMEOUT_S, Settings

if TYPE_CHECKING:
    from rerank_plugins.reporting import Report

T = TypeVar("T")


def check_text(text: object, where: str) -> str:
    """Return *text* if it can be scored: a string without lone surrogates."""
    if not isinstance(text, str):
        raise InputTypeError(f"{where} must be str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(
            f"{where} holds the lone surrogate U+{ord(text[exc.start]):04X} at character "
            f"{exc.start}, which is no text; decode the source with errors='replace'"
        ) from None
    return text


def check_query(query: object, where: str = "query") -> str:
    """Return *query* if it can be scored: text that is not blank."""
    text = check_text(query, where)
    if not text.strip():
        raise InputError(f"{where} is blank; a ranking needs something to rank by")
    return text


class DeferredTexts(Sequence[str]):
    """Texts that are read from a framework's objects when they are first needed.

    An async door hands them over as they are, so that reading them does not hold the event loop.
    Where *read* fails, reading raises `PluginError` with the index.
    """

    def __init__(self, items: Sequence[T], read: Callable[[T], str]) -> None:
        self._items = items
        self._read = read

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        # Sequence's own iterator would take an IndexError of *read* for the end of the texts.
        return map(self._text, range(len(self._items)))

    @overload
    def __getitem__(self, key: int) -> str: ...

    @overload
    def __getitem__(self, key: slice) -> list[str]: ...

    def __getitem__(self, key: int | slice) -> str | list[str]:
        places = range(len(self._items))[key]
        return self._text(places) if isinstance(places, int) else [self._text(i) for i in places]

    def _text(self, place: int) -> str:
        try:
            return self._read(self._items[place])
        # What a user's function raises may be anything.
        except Exception as exc:
            raise PluginError(
                f"the text of documents[{place}] could not be read: {type(exc).__name__}: {exc}"
            ) from exc


def _snapshot(documents: object) -> Sequence[str]:
    if isinstance(documents, str | bytes):
        raise InputTypeError(
            f"documents must be a sequence of str, got one {type(documents).__name__}"
        )
    if not isinstance(documents, Sequence):
        raise InputTypeError(f"documents must be a sequence of str, got {type(documents).__name__}")
    # The caller may go on changing a list of its own.
    return documents if isinstance(documents, DeferredTexts) else tuple(documents)


@dataclass(slots=True)
class Group:
    """One query with its documents, and, once they are submitted, who answers."""

    query: str
    where: str
    places: Sequence[int]
    documents: Sequence[str]
    scorer: str = ""
    activation: str = ""
    language: str | None = None
    chosen: Chosen = field(default_factory=Chosen)


@dataclass(slots=True)
class Call:
    """What a caller asked for, and the wait for it; *instruction* None is the setting's.

    ``falls_back`` says that another scorer answers than the one that was configured for it;
    ``report`` is there where an observer wants to hear of the call.
    """

    job: Job
    groups: list[Group]
    pairs: Sequence[object] = ()
    choice: Choice = ALL
    instruction: str | None = None
    report: Report | None = None
    falls_back: bool = False

    def anew(self) -> Call:
        """Return the same call for another scorer: nothing of an answer, not even of a part."""
        groups = [Group(g.query, g.where, g.places, g.documents) for g in self.groups]
        # A thread may still be at the first one.
        return replace(self, job=self.job.anew(), groups=groups, falls_back=True)

    def prepare(self) -> None:
        """Read and check what takes time where there is much of it: off the event loop, that is."""
        if self.pairs:
            self.groups = _grouped(self.pairs)
        for group in self.groups:
            group.documents = [
                check_text(document, self.job.where(place))
                for place, document in zip(group.places, group.documents, strict=True)
            ]


class Keep(NamedTuple):
    """Which documents of a ranking are kept."""

    top_n: int | None
    score_threshold: float | None
    min_results: int

    @classmethod
    def checked(cls, top_n: object, score_threshold: object, min_results: object) -> Keep:
        """Check the arguments of a ranking by their names."""
        if top_n is not None and (not _is_int(top_n) or top_n < 1):
            raise InputError(f"top_n must be an int of at least 1, or None for all, got {top_n!r}")
        if score_threshold is not None and not (
            isinstance(score_threshold, int | float)
            and not isinstance(score_threshold, bool)
            and math.isfinite(score_threshold)
        ):
            raise InputError(
                f"score_threshold must be a finite number or None, got {score_threshold!r}"
            )
        if not _is_int(min_results) or min_results < 0:
            raise InputError(f"min_results must be an int of at least 0, got {min_results!r}")
        return cls(top_n, score_threshold, min_results)


def choice_of(
    settings: Settings, duplicates: object, near_duplicates: object, max_candidates: object
) -> Choice:
    """Check what a call says of its documents; None is the setting of that name, 0 is off."""
    own = "leave it out for the setting of that name"
    if duplicates is None:
        duplicates = settings.duplicates
    elif not isinstance(duplicates, str) or duplicates not in list(Duplicates):
        raise InputError(f'duplicates must be "keep" or "drop", got {duplicates!r}; {own}')
    if near_duplicates is None:
        near_duplicates = settings.near_duplicates
    elif (
        isinstance(near_duplicates, bool)
        or not isinstance(near_duplicates, int | float)
        or not 0 <= near_duplicates <= 1
    ):
        raise InputError(
            f"near_duplicates must be a number from 0 (off) to 1, got {near_duplicates!r}; {own}"
        )
    if max_candidates is None:
        max_candidates = settings.max_candidates
    elif not _is_int(max_candidates) or max_candidates < 0:
        raise InputError(
            f"max_candidates must be an int of at least 1, or 0 for all, got {max_candidates!r}; "
            f"{own}"
        )
    return Choice(Duplicates(duplicates), near_duplicates or None, max_candidates or None)


def check_instruction(instruction: object) -> str | None:
    """Return *instruction* if it is None or text that is not blank."""
    if instruction is None:
        return None
    text = check_text(instruction, "instruction")
    if not text.strip():
        raise InputError("instruction is blank; leave it out for the setting of that name")
    return text


def priority_of(settings: Settings, priority: object) -> Priority:
    """Check the priority of a call; None is the setting of that name."""
    if priority is None:
        return settings.priority
    if not isinstance(priority, str) or priority not in list(Priority):
        raise InputError(
            f'priority must be "interactive" or "bulk", got {priority!r}; leave it out for the '
            "setting of that name"
        )
    return Priority(priority)


def check_timeout(timeout_s: object) -> float | None:
    """Return *timeout_s* if it is None or a number of seconds that can be waited for."""
    if timeout_s is None:
        return None
    if (
        isinstance(timeout_s, bool)
        or not isinstance(timeout_s, int | float)
        or not 0 < timeout_s <= LONGEST_TIMEOUT_S
    ):
        raise InputError(
            "timeout_s must be a number of seconds above 0 and at most "
            f"{LONGEST_TIMEOUT_S}, got {timeout_s!r}; leave it out for the setting of that name"
        )
    return timeout_s


def _is_int(value: object) -> TypeGuard[int]:
    # True is an int to Python, and a slip here.
    return isinstance(value, int) and not isinstance(value, bool)


def rank_call(
    query: object, documents: object, choice: Choice = ALL, instruction: object = None
) -> Call:
    """Check one query, its instruction, and that its documents are a sequence."""
    texts = _snapshot(documents)
    group = Group(check_query(query), "query", range(len(texts)), texts)
    job = Job(len(texts))
    return Call(job, [group], choice=choice, instruction=check_instruction(instruction))


def score_call(pairs: object, instruction: object = None) -> Call:
    """Check that there is a sequence of something; `Call.prepare` looks at the pairs."""
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"pairs must be a sequence of (query, document), got {type(pairs).__name__}"
        )
    snapshot = tuple(pairs)
    job = Job(len(snapshot), argument="pairs")
    return Call(job, [], snapshot, instruction=check_instruction(instruction))


def _grouped(pairs: Sequence[object]) -> list[Group]:
    """Gather the pairs that share a query."""
    places: dict[str, list[int]] = {}
    documents: dict[str, list[str]] = {}
    for i, pair in enumerate(pairs):
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputTypeError(f"pairs[{i}] must be (query, document), got {pair!r:.80}")
        query = check_query(pair[0], f"pairs[{i}][0]")
        places.setdefault(query, []).append(i)
        documents.setdefault(query, []).append(pair[1])
    return [
        Group(query, f"pairs[{at[0]}][0]", at, documents[query]) for query, at in places.items()
    ]
