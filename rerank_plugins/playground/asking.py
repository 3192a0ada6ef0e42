"""What the page asks of the models, and what they answer: no Gradio, no HTML."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rerank_plugins.cleaning import default_detector
from rerank_plugins.documents import Reading, parse_documents
from rerank_plugins.errors import InputError, RerankError
from rerank_plugins.events import Observer
from rerank_plugins.registry import config_of_another
from rerank_plugins.requests import Keep, check_query, check_text, choice_of
from rerank_plugins.reranker import Reranker
from rerank_plugins.server_addresses import addresses_of, is_loopback, is_remote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.documents import SourceDocument, Split
    from rerank_plugins.events import RequestEvent
    from rerank_plugins.results import Ranking

MOST_DOCUMENTS: Final = 1000
MOST_BYTES: Final = 4_000_000
"""What one press of the button may bring: a page is for looking, not for batches."""


@dataclass(frozen=True, slots=True)
class Question:
    """What stands on the page when the button is pressed.

    *files* are names with bytes, read in place of *text* where there are any. *top_n* None shows
    all; None of the other settings is what the command line said.
    """

    query: str
    text: str
    models: tuple[str, ...]
    split: Split = "paragraph"
    files: tuple[tuple[str, bytes], ...] = ()
    top_n: int | None = None
    max_candidates: int | None = None
    duplicates: str | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's ranking and how the call went, or the *problem* that kept it from one.

    *untold* says that there was an instruction and that the model takes none.
    """

    model: str
    ranking: Ranking | None = None
    event: RequestEvent | None = None
    problem: str = ""
    untold: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """The documents as they were given, and each model's answer to them.

    ``languages`` are the detected ones by the documents' place, None where there is none to tell.
    """

    query: str
    documents: tuple[SourceDocument, ...]
    answers: tuple[Answer, ...]
    languages: tuple[str | None, ...] = ()
    top_n: int | None = None


class LastRequest(Observer):
    """Remembers the last request of each thread: observers are told in the caller's own."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def on_request(self, event: RequestEvent) -> None:
        """Remember it."""
        self._mine.event = event

    def take(self) -> RequestEvent | None:
        """Return this thread's last request, and forget it."""
        event: RequestEvent | None = getattr(self._mine, "event", None)
        self._mine.event = None
        return event


@dataclass(frozen=True, slots=True)
class _Model:
    reranker: Reranker
    takes_instruction: bool


@dataclass(slots=True)
class Playground:
    """The models that the page may ask, opened by name, and nothing else.

    Raises:
        ConfigError, ModelLoadError, MissingExtraError, ScoringError: a model cannot be opened.
    """

    config: RerankConfig
    models: Sequence[str]
    _opened: dict[str, _Model] = field(default_factory=dict, init=False)
    _last: LastRequest = field(default_factory=LastRequest, init=False)

    def __enter__(self) -> Self:
        try:
            for name in dict.fromkeys(self.models):
                self._opened[name] = self._open(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every model."""
        for model in self._opened.values():
            model.reranker.close()

    @property
    def names(self) -> list[str]:
        """The models by name, in the order in which they were given."""
        return list(self._opened)

    @property
    def elsewhere(self) -> list[str]:
        """The addresses, of other machines than this one, that texts may be sent to."""
        config = self.config
        models = (*self._opened, *config.fallback, *config.language_models.values())
        addresses = [each for name in models if is_remote(name) for each in addresses_of(name)]
        return [each for each in dict.fromkeys(addresses) if not is_loopback(each)]

    @property
    def takes_instruction(self) -> bool:
        """Whether one of the models can be told what to look for."""
        return any(model.takes_instruction for model in self._opened.values())

    def ask(self, question: Question) -> Comparison:
        """Rank the documents with each model that was chosen, one after the other.

        A model that fails has its problem in its answer; the others answer all the same.

        Raises:
            InputError: nothing of it can be ranked: the query, a document, a setting, a model.
        """
        check_query(question.query, "the query")
        unknown = [name for name in question.models if name not in self._opened]
        if unknown or not question.models:
            raise InputError(f"choose a model of this page: {', '.join(self._opened)}")
        Keep.checked(question.top_n, None, 0)
        choice_of(self.config, question.duplicates, None, question.max_candidates)
        documents = _documents_of(question)
        # A model that stands twice answers once.
        answers = [
            self._answer(name, question, documents) for name in dict.fromkeys(question.models)
        ]
        return Comparison(
            query=question.query,
            documents=tuple(documents),
            answers=tuple(answers),
            languages=tuple(default_detector()(document.text) for document in documents),
            top_n=question.top_n,
        )

    def _open(self, name: str) -> _Model:
        # The key goes along to the configured model, and to no other.
        config = self.config if name == self.config.model else config_of_another(name, self.config)
        config = config.model_copy(update={"observers": (self._last,)})
        reranker = Reranker.from_config(config)
        try:
            reranker.warmup()
            return _Model(reranker, reranker.takes_instruction)
        except BaseException:
            reranker.close()
            raise

    def _answer(self, name: str, question: Question, documents: Sequence[SourceDocument]) -> Answer:
        model = self._opened[name]
        told = question.instruction if model.takes_instruction else None
        untold = question.instruction is not None and told is None
        self._last.take()
        try:
            # Ranked whole: where a document beyond top_n came is worth seeing, too.
            ranking = model.reranker.rank(
                question.query,
                [document.text for document in documents],
                max_candidates=question.max_candidates,
                duplicates=question.duplicates,
                instruction=told,
            )
        except RerankError as exc:
            return Answer(name, problem=str(exc), event=self._last.take(), untold=untold)
        return Answer(name, ranking, self._last.take(), untold=untold)


def _documents_of(question: Question) -> list[SourceDocument]:
    """Return the documents of the files, or of the text where there are none."""
    check_text(question.text, "the text of the documents")
    parts: Sequence[tuple[str, str | bytes]] = question.files or [("text", question.text)]
    if sum(len(content) for _, content in parts) > MOST_BYTES:
        raise InputError(f"the documents are more than this page takes, {MOST_BYTES:,} bytes")
    reading = Reading(split=question.split)
    documents = [
        document for name, content in parts for document in parse_documents(content, name, reading)
    ]
    if not documents:
        raise InputError("there are no documents: paste some, or choose files")
    if len(documents) > MOST_DOCUMENTS:
        raise InputError(
            f"{len(documents):,} documents are more than this page takes, {MOST_DOCUMENTS:,}"
        )
    return documents
