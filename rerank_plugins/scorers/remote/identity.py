"""What a server says of itself: its dialect, the model it serves, and its limits."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.options import Dialect
from rerank_plugins.scorers.remote.dialects import ROWS
from rerank_plugins.scorers.remote.failures import Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from rerank_plugins.scorers.remote.dialects import Row

    Get = Callable[[str], Awaitable[object]]

AT_ONCE: Final = 16
"""Requests to a server at once: it forms batches of what is there, and a few dozen fill one."""

OWN_PREFIX: Final = "/infinity"
"""Where this project's own service speaks Infinity's dialect."""

_NOT_IT: Final = (Kind.MISSING, Kind.BROKEN, Kind.REFUSED, Kind.FAULTY)
"""Failures that say that a server is of another kind, and not that it is in trouble."""


@dataclass(frozen=True, slots=True)
class Served:
    """What is asked of a server, and how.

    ``model`` is the name that it wants to hear, ``identity`` everything it says that changes a
    logit, and so without its address. ``documents`` is how many a request may have, ``at_once`` how
    many requests there may be.
    """

    row: Row
    model: str | None
    identity: str
    documents: int
    at_once: int = AT_ONCE
    prefix: str = ""
    instruction: str | None = None

    @property
    def path(self) -> str:
        """Where pairs are scored."""
        return self.prefix + self.row.path


async def identify(get: Get, address: str, dialect: Dialect, model: str | None) -> Served:
    """Ask what is served at *address*; *get* reads the JSON at a path of it.

    Raises:
        Failure: it cannot be asked, is nothing that is known, or serves another *model*.
    """
    if dialect is Dialect.AUTO:
        return await _recognise(get, address, model)
    row = ROWS[dialect]
    if row.lists is None:
        return _untold(row, model)
    try:
        body = await get(row.lists)
    except Failure as failure:
        # A gateway may let nothing through but the requests themselves.
        if model is not None and failure.kind in _NOT_IT:
            return _untold(row, model)
        raise
    served = _READERS[dialect](body, address, model)
    if served is not None:
        return served
    raise Failure(
        Kind.MISSING, f"{address}{row.lists} is not what a server of dialect {dialect!s} says"
    )


async def _recognise(get: Get, address: str, model: str | None) -> Served:
    """Try what each kind of server says of itself."""
    for dialect in (Dialect.TEI, Dialect.INFINITY, Dialect.VLLM):
        path = ROWS[dialect].lists or ""
        try:
            body = await get(path)
        except Failure as failure:
            if failure.kind in _NOT_IT:
                continue
            raise
        read = _READERS[dialect]
        if dialect is Dialect.TEI:
            read = _own if isinstance(body, dict) and "max_characters" in body else read
        elif _owner(body) != dialect:
            continue
        if (served := read(body, address, model)) is not None:
            return served
    raise Failure(
        Kind.MISSING,
        f"{address} does not say what it is; set dialect to one of "
        f"{', '.join(map(str, ROWS))}, and remote_model to the model it serves",
    )


def _untold(row: Row, model: str | None) -> Served:
    return Served(row, model, _identity(row, model, {}), row.documents)


def _identity(row: Row, model: str | None, details: Mapping[str, object]) -> str:
    told = {"model": model, "cut": row.cut, **details}
    return f"remote/{row.dialect}/{json.dumps(told, sort_keys=True, ensure_ascii=False)}"


def _info(body: object, address: str, model: str | None) -> Served | None:
    """Read ``/info`` as TEI has it."""
    if not isinstance(body, dict) or not isinstance(body.get("model_id"), str):
        return None
    kind = body.get("model_type")
    if isinstance(kind, dict) and not {"reranker", "classifier"} & kind.keys():
        what = ", ".join(map(str, kind)) or "nothing"
        raise Failure(Kind.MISSING, f"{address} serves no reranker but {body['model_id']} ({what})")
    row = ROWS[Dialect.TEI]
    serves = _the_one([body["model_id"]], address, model)
    documents = _number(body.get("max_client_batch_size"), row.documents)
    permits = _number(body.get("max_concurrent_requests"), 512)
    details = {
        "sha": body.get("model_sha"),
        "dtype": body.get("model_dtype"),
        "max_input_length": body.get("max_input_length"),
    }
    return Served(
        row,
        serves,
        _identity(row, serves, details),
        documents,
        # Each document takes a permit, and others want some.
        at_once=max(1, min(AT_ONCE, permits // (2 * documents))),
    )


def _own(body: object, address: str, model: str | None) -> Served | None:
    """Read ``/info`` as this project's own service has it, which speaks Infinity's dialect."""
    names = body.get("models") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(names, list):
        return None
    serves = _the_one(map(str, names), address, model)
    identities, instructed = body.get("identities"), body.get("instructed")
    details: dict[str, object] = {"own": True}
    details |= {"identity": identities.get(serves)} if isinstance(identities, dict) else {}
    takes_one = isinstance(instructed, list) and serves in instructed
    own = ROWS[Dialect.INFINITY]
    row = replace(own, characters=_number(body.get("max_characters"), own.characters or 1))
    return Served(
        row,
        serves,
        _identity(row, serves, details),
        _number(body.get("max_client_batch_size"), row.documents),
        at_once=max(1, min(AT_ONCE, _number(body.get("max_concurrent_requests"), 512) // 2)),
        prefix=OWN_PREFIX,
        # The one that is set there; blank, as nobody can ask for that.
        instruction="" if takes_one else None,
    )


def _infinity(body: object, address: str, model: str | None) -> Served | None:
    models = _models(body)
    if models is None:
        return None
    # Old versions do not say what a model can do.
    can = {name: str(each.get("capabilities", "rerank")) for name, each in models.items()}
    rerankers = {name: each for name, each in models.items() if "rerank" in can[name]}
    row = ROWS[Dialect.INFINITY]
    serves = _the_one(rerankers, address, model)
    details = {"backend": rerankers[serves].get("backend")}
    return Served(row, serves, _identity(row, serves, details), row.documents)


def _listed(dialect: Dialect) -> Callable[[object, str, str | None], Served | None]:
    """Return what reads a list of models as OpenAI writes it."""
    row = ROWS[dialect]

    def read(body: object, address: str, model: str | None) -> Served | None:
        models = _models(body)
        if models is None:
            return None
        serves = _the_one(models, address, model)
        told = models[serves]
        details = {name: told.get(name) for name in ("root", "max_model_len")}
        return Served(row, serves, _identity(row, serves, details), row.documents)

    return read


_READERS: Final = {
    Dialect.TEI: _info,
    Dialect.INFINITY: _infinity,
    Dialect.VLLM: _listed(Dialect.VLLM),
    Dialect.NIM: _listed(Dialect.NIM),
}


def _models(body: object) -> dict[str, dict[str, Any]] | None:
    """Return the models of a list by name; None if it is none."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        return None
    known = [each for each in data if isinstance(each, dict) and isinstance(each.get("id"), str)]
    return {each["id"]: each for each in known}


def _owner(body: object) -> object:
    """Return who a list of models says it is of."""
    models = _models(body) or {}
    return next((each.get("owned_by") for each in models.values()), None)


def _the_one(names: Iterable[str], address: str, model: str | None) -> str:
    """Return *model*, if it is among *names*, or the first of them where none is asked for."""
    there = list(names)
    if model is None and there:
        return str(there[0])
    if model is not None and model in there:
        return model
    serves = ", ".join(there[:8]) or "no reranker"
    raise Failure(Kind.MISSING, f"{address} serves {serves}, and remote_model is {model!r}")


def _number(value: object, other: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if good and isinstance(value, int) else other
