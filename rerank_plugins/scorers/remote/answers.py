"""Answers of servers, read by the row of their dialect; nothing in them is trusted."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from rerank_plugins.errors import ScoringError
from rerank_plugins.scorers.remote.failures import Failure, Kind

if TYPE_CHECKING:
    from rerank_plugins.scorers.remote.dialects import Row

Answer = float | Exception
"""What comes of a pair: its logit, or why there is none."""


def read_json(content: bytes, address: str) -> object:
    """Parse the body of a success.

    Raises:
        Failure: it is no JSON, such as a page that a proxy put in its place.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        kind = "an HTML page" if content.lstrip()[:1] == b"<" else "what is no JSON"
        raise Failure(Kind.BROKEN, f"{address} answered with {kind}") from None


def read_answer(body: object, row: Row, count: int, address: str) -> list[Answer]:
    """Return what *body* says of each of *count* documents, in the order that they were sent.

    A value that is not finite fails its own document.

    Raises:
        Failure: it is not an answer to that question: documents are missing or come twice.
    """
    found = body
    if row.results is not None:
        found = body.get(row.results) if isinstance(body, dict) else None
    if not isinstance(found, list):
        where = "a list" if row.results is None else f"a list named {row.results!r}"
        raise _broken(address, f"the answer has no {where}")
    answers: list[Answer | None] = [None] * count
    for each in found:
        index = each.get("index") if isinstance(each, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise _broken(address, f"an index of the answer is none of 0 to {count - 1}")
        if answers[index] is not None:
            raise _broken(address, f"index {index} comes twice")
        answers[index] = _value(each.get(row.value), row, address)
    complete = [each for each in answers if each is not None]
    if len(complete) < count:
        raise _broken(address, f"{count - len(complete)} of {count} documents are missing")
    return complete


def _value(value: object, row: Row, address: str) -> Answer:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _broken(address, f"{row.value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # float32 is what logits are kept in.
    if not abs(number) <= 3.4e38:
        return ScoringError(f"{address} gave {number}, which is no logit")
    return number


def _broken(address: str, words: str) -> Failure:
    return Failure(Kind.BROKEN, f"{address} gave a wrong answer: {words}")
