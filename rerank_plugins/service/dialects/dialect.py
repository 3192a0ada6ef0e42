"""What a dialect is: request and answer of each endpoint, status codes, the form of an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rerank_plugins.service.problems import STATUSES, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import BaseModel

    from rerank_plugins.service.asking import Answer, Ask
    from rerank_plugins.service.problems import Problem

RequestT = TypeVar("RequestT", bound="BaseModel")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server refuses: ``error_schema`` describes what ``error_body`` builds.

    ``statuses`` holds the codes that differ from `STATUSES`.
    """

    name: str
    error_schema: type[BaseModel]
    error_body: Callable[[Problem, int], object]
    statuses: Mapping[Kind, int] = field(default_factory=dict)

    def status(self, kind: Kind) -> int:
        """Return the status code of a problem."""
        return self.statuses.get(kind, STATUSES[kind])


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[RequestT]):
    """One kind of request: its schema, the rankings it asks for, and the answer built of them.

    ``response`` describes what ``answer`` builds, for the OpenAPI document; ``example`` is a
    request for the same.
    """

    dialect: Dialect
    summary: str
    request: type[RequestT]
    asks: Callable[[RequestT], Sequence[Ask]]
    answer: Callable[[Answer], object]
    response: Any
    example: Mapping[str, object]


AnyEndpoint = Endpoint[Any]
