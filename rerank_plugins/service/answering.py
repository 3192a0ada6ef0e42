"""A request from its body to its answer: the same for every dialect."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rerank_plugins.options import Duplicates, Priority
from rerank_plugins.service.access import CLIENT_GONE, access_of
from rerank_plugins.service.asking import Answer
from rerank_plugins.service.dialects.paths import endpoint_of
from rerank_plugins.service.models import public_name
from rerank_plugins.service.problems import Kind, Problem, RefusedError, closing, problem_of
from rerank_plugins.service.reading import asks_of, json_object, read_body, timeout_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from starlette.requests import Request

    from rerank_plugins.reranker import Reranker
    from rerank_plugins.results import Ranking
    from rerank_plugins.service.asking import Ask
    from rerank_plugins.service.dialects.dialect import AnyEndpoint, Dialect
    from rerank_plugins.service.state import Service

T = TypeVar("T")

_LOGGER: Final = logging.getLogger("rerank_plugins.service")
_AT_A_TIME: Final = 128
"""Rankings of one request that are begun at a time: between them, others have their turn."""
SCORER_HEADER: Final = "x-scorer"
"""Header of an answer that names who scored: another than the model where it fell back."""


async def answer(
    service: Service, endpoints: tuple[AnyEndpoint, ...], request: Request
) -> Response:
    """Rank what *request* asks for and answer in its dialect, whatever becomes of it."""
    access = access_of(request.scope)
    dialect = endpoints[0].dialect
    try:
        sent = json_object(await read_body(request, service))
        endpoint = endpoint_of(endpoints, sent)
        dialect, access.dialect = endpoint.dialect, endpoint.dialect.name
        asks = asks_of(sent, endpoint, service.settings)
        del sent
        access.model, reranker = service.models.find(asks[0].model)
        access.documents = sum(len(ask.documents) for ask in asks)
        timeout_s = _shorter(timeout_of(request), reranker.config.timeout_s)
        rankings = await _unless_gone(request, _rank_all(reranker, asks, timeout_s))
        answered = Answer(asks, rankings, access.id, int(time.time()), access.model)
        access.scorer = _scorer(rankings[0], access.model, reranker)
        access.tokens = answered.tokens
        return Response(
            # A field 1e999 of a document would come back as Infinity, which is no JSON.
            to_json(endpoint.answer(answered), inf_nan_mode="null"),
            media_type="application/json",
            headers={SCORER_HEADER: quote(access.scorer, safe="/:@ ")},
        )
    except (ClientDisconnect, _GoneError):
        access.error = "client_gone"
        return Response(status_code=CLIENT_GONE)
    except asyncio.CancelledError:
        if not service.draining:
            raise
        access.error = "given_up"  # The server waits no longer; its client is told.
        return refusal(dialect, closing())
    except Exception as exc:  # noqa: BLE001  every error has an answer in the client's dialect
        access.error = type(exc).__name__
        problem = problem_of(exc)
        if problem.kind is Kind.FAILED:
            # No traceback: its last line is the message.
            _LOGGER.error("request %s failed: %s", access.id, _classes(exc))  # noqa: TRY400
        return refusal(dialect, problem)


def refusal(dialect: Dialect, problem: Problem) -> Response:
    """Return the answer that says why there is no ranking."""
    status = dialect.status(problem.kind)
    return Response(
        to_json(dialect.error_body(problem, status)),
        status,
        media_type="application/json",
        headers=dict(problem.headers or {}),
    )


def _classes(error: BaseException) -> str:
    """Name an error and its causes by their classes: a message might quote a document."""
    names: list[str] = []
    found: BaseException | None = error
    while found is not None and len(names) < 5:
        names.append(type(found).__name__)
        found = found.__cause__
    return " from ".join(names)


def _scorer(ranking: Ranking, model: str, reranker: Reranker) -> str:
    """Name who answered as clients know it."""
    own = ranking.scorer == reranker.config.model
    return model if own else public_name(ranking.scorer)


def _shorter(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


async def _rank_all(
    reranker: Reranker, asks: Sequence[Ask], timeout_s: float | None
) -> list[Ranking]:
    """Answer all that is asked for, many at the same time where it is more than one."""
    if len(asks) == 1:
        return [await _rank(reranker, asks[0], timeout_s)]
    room, started = asyncio.Semaphore(_AT_A_TIME), time.monotonic()

    async def ranked(ask: Ask) -> Ranking:
        async with room:
            left = timeout_s
            if left is not None:
                # The last ones have what the first ones left of it.
                left = max(1e-6, left - (time.monotonic() - started))
            return await _rank(reranker, ask, left)

    tasks = [asyncio.ensure_future(ranked(ask)) for ask in asks]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _rank(reranker: Reranker, ask: Ask, timeout_s: float | None) -> Ranking:
    ranking = await reranker.arank(
        ask.query,
        ask.documents,
        # Whether anything was cut shows in the whole ranking alone.
        top_n=None if ask.uncut else ask.top_n,
        duplicates=Duplicates.KEEP if ask.all else None,
        near_duplicates=0 if ask.all else None,
        max_candidates=0 if ask.all else None,
        instruction=ask.instruction,
        priority=Priority.BULK if ask.bulk else None,
        timeout_s=timeout_s,
    )
    if not ask.uncut:
        return ranking
    for document in ranking:
        if document.truncated:
            raise RefusedError(
                Kind.INVALID,
                f"{ask.uncut}: documents[{ask.place(document)}] is longer than the model reads",
                param=ask.uncut,
            )
    return replace(ranking, documents=ranking.documents[: ask.top_n])


class _GoneError(Exception):
    """The client hung up while its ranking was made."""


async def _unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """Return what *work* returns; it is cancelled as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(request))

    def cancel(watched: asyncio.Future[None]) -> None:
        if not watched.cancelled() and watched.exception() is None:
            task.cancel()

    watcher.add_done_callback(cancel)
    try:
        return await task
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if own is not None and own.cancelling():
            raise
        raise _GoneError from None
    finally:
        watcher.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
