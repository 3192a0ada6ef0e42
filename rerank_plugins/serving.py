"""The life of a call: clean → route → engine → wait → finish, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from rerank_plugins.attempts import Attempt, attempts
from rerank_plugins.candidates import ALL
from rerank_plugins.errors import ClosedError
from rerank_plugins.given_order import answer_in_given_order
from rerank_plugins.options import LEXICAL, RETRIEVAL_ORDER, Activation, OnError
from rerank_plugins.reporting import reported
from rerank_plugins.requests import DeferredTexts, check_timeout
from rerank_plugins.routing import Router, knows
from rerank_plugins.screening import chosen_texts, cleaned_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

    from rerank_plugins.cleaning import Cleaner
    from rerank_plugins.config import RerankConfig
    from rerank_plugins.engine import Engine
    from rerank_plugins.jobs import Job
    from rerank_plugins.protocols import AnyScorer
    from rerank_plugins.registry import Leases
    from rerank_plugins.requests import Call, Group

T = TypeVar("T")

_FINISH_ON_LOOP = 4096
"""Documents whose ranking is put together on the event loop: some milliseconds' work."""


class Serving:
    """Serves the calls of one reranker, those of threads and those of event loops alike."""

    def __init__(self, config: RerankConfig, cleaner: Cleaner, leases: Leases) -> None:
        self._config = config
        self._cleaner = cleaner
        self._leases = leases
        self._router = Router(config, leases)

    def answer(self, call: Call, timeout_s: float | None, finish: Callable[[Call], T]) -> T:
        """Serve *call* and return what *finish* makes of it once it is answered."""
        with reported(self._config, call.job) as call.report:
            for attempt in self._attempts(call, timeout_s):
                with attempt:
                    self._refuse_early(attempt)
                    for room in self._submit(attempt):
                        room.result(attempt.left_s())
                    attempt.call.job.future.result(attempt.left_s())
                    return finish(attempt.call)
        raise AssertionError("the last attempt answers or raises")

    async def await_answer(
        self, call: Call, timeout_s: float | None, finish: Callable[[Call], T]
    ) -> T:
        """Do what `answer` does; on the event loop itself happens only what is short."""
        with reported(self._config, call.job) as call.report:
            self._leases.check_open()
            for attempt in self._attempts(call, timeout_s):
                with attempt:
                    self._refuse_early(attempt)
                    async with asyncio.timeout(attempt.left_s()):
                        return await self._await(attempt, finish)
        raise AssertionError("the last attempt answers or raises")

    async def _await(self, attempt: Attempt, finish: Callable[[Call], T]) -> T:
        call = attempt.call
        run = contextvars.copy_context().run
        if attempt.link == RETRIEVAL_ORDER:
            answer = partial(self._answer_at_once, attempt, finish)
            # No engine's threads: those of a dead one may all be stuck.
            return answer() if _is_short(call) else await asyncio.to_thread(answer)
        engine = self._leases.primary if attempt.link is None else self._leases.lease(attempt.link)
        threads = engine.threads(may_block=self._cleaner.may_block or engine.may_block)
        # Step by step: who waits for room in the queue must not hold a thread meanwhile.
        step = partial(run, next, self._submit(attempt), None)
        while (room := await _run_in(threads, step)) is not None:
            await asyncio.wrap_future(room)
        await asyncio.wrap_future(call.job.future)
        if len(call.job.pairs) <= _FINISH_ON_LOOP:
            return finish(call)
        try:
            return await _run_in(engine.threads(), partial(finish, call))
        except ClosedError:
            # Closed since; the answer is complete all the same.
            return finish(call)

    def warm_up(self) -> None:
        """Open the model, and score one pair with each replica; open the lexical link, too."""
        if LEXICAL in self._chain():
            # The first overload would open it, while all cores are at work.
            self._leases.lease(LEXICAL).warm_up()
        self._leases.primary.warm_up(self._router.instruction(None, lambda _: None))

    def _chain(self) -> tuple[str, ...]:
        config = self._config
        if config.on_error is not OnError.FALLBACK:
            return ()
        # By its own name too, where it is the lexical scorer that stands in for it.
        return tuple(link for link in config.fallback if link != config.model)

    def _attempts(self, call: Call, timeout_s: float | None) -> Iterator[Attempt]:
        config = self._config
        tries = attempts(
            call,
            primary=self._leases.primary,
            timeout_s=config.timeout_s if timeout_s is None else check_timeout(timeout_s),
            chain=self._chain(),
        )
        for attempt in tries:
            job = attempt.call.job
            job.deadline = attempt.deadline
            if call.report is not None:
                call.report.attempt(job, falls_back=attempt.call.falls_back)
            yield attempt
            if call.report is not None and attempt.error is not None:
                call.report.failed(attempt.error)

    def _refuse_early(self, attempt: Attempt) -> None:
        """Ask nothing of a dead primary, not even its threads, where no query could pass it by."""
        primary = self._leases.primary
        if attempt.link is None and attempt.falls_back and not self._config.language_models:
            self._leases.check_open()
            if primary.breaker.refuses:
                attempt.refuse(primary)

    def _submit(self, attempt: Attempt) -> Iterator[Future[None]]:
        """Clean and route each query with its documents, and hand them to the engine.

        Gives futures to wait for before it goes on, as `Engine.submitting` does.
        """
        call = attempt.call
        if attempt.link == RETRIEVAL_ORDER:
            self._answer_in_given_order(call)
            return
        call.job.work("clean")
        try:
            call.prepare()
            with _opening(call.job, self._leases.primary):
                instruction = self._instruction(attempt)
            for group in call.groups:
                query, scored_language = self._cleaner.query(group.query, group.where)
                with _opening(call.job, self._leases.primary):
                    engine = self._engine(attempt, scored_language)
                group.language = query.language
                attempt.ask(engine, group)
                yield from self._submit_group(attempt, group, query.text, engine, instruction)
                if not call.job.waiting:
                    return
        finally:
            call.job.work(None)

    def _instruction(self, attempt: Attempt) -> str | None:
        asked = attempt.call.instruction
        if attempt.link is None:
            return self._router.instruction(asked, attempt.admit)
        # Where a fallback takes none, its engine leaves it out.
        return self._config.instruction if asked is None else asked

    def _engine(self, attempt: Attempt, language: str | None) -> Engine:
        if attempt.link is None:
            return self._router.engine(language, attempt.admit)
        engine = self._leases.lease(attempt.link)
        attempt.admit(engine)
        if language is not None and not knows(engine, language):
            attempt.pass_over(engine, f"it knows no queries in {language!r}")
        return engine

    def _submit_group(
        self,
        attempt: Attempt,
        group: Group,
        query: str,
        engine: Engine,
        instruction: str | None,
    ) -> Iterator[Future[None]]:
        """Hand the documents of *group* to *engine*; *query* is the cleaned one."""
        call, deadline = attempt.call, attempt.deadline
        with _opening(call.job, engine):
            scorer = engine.scorer()
        if call.report is not None:
            call.report.asked(scorer.name)
        group.scorer, group.activation = scorer.name, self._activation(scorer)
        texts = cleaned_texts(self._cleaner, group, call.job, deadline)
        if call.choice != ALL:
            texts = chosen_texts(call, query, texts, deadline)
        return engine.submitting(
            call.job,
            query,
            texts,
            salt=self._cleaner.identity,
            instruction=instruction,
            when_full=self._config.when_full,
        )

    def _answer_in_given_order(self, call: Call) -> None:
        if call.report is not None:
            call.report.asked(RETRIEVAL_ORDER)
        answer_in_given_order(call)

    def _answer_at_once(self, attempt: Attempt, finish: Callable[[Call], T]) -> T:
        self._answer_in_given_order(attempt.call)
        return finish(attempt.call)

    def _activation(self, scorer: AnyScorer) -> str:
        chosen = self._config.activation
        return scorer.activation if chosen is Activation.AUTO else chosen.value


def _run_in(threads: Executor, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run *function* in one of *threads*, which may have been closed just now."""
    try:
        return asyncio.get_running_loop().run_in_executor(threads, function)
    except RuntimeError as exc:
        raise ClosedError("the reranker was closed during the call") from exc


@contextmanager
def _opening(job: Job, engine: Engine) -> Iterator[None]:
    """What may open *engine* happens in here: a stage of its own for whoever comes first."""
    if engine.opened:
        yield
        return
    job.work("open")
    yield
    job.work("clean")


def _is_short(call: Call) -> bool:
    """Whether there are few texts, and nobody's function has to be called to read them."""
    read = not any(isinstance(group.documents, DeferredTexts) for group in call.groups)
    return read and call.choice == ALL and len(call.job.pairs) <= _FINISH_ON_LOOP
