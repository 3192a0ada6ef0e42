"""The door before the replicas: what it reads, sends again and refuses; no Ray runs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rerank_plugins.errors import ConfigError
from rerank_plugins.testing import FakeScorer

pytest.importorskip("fastapi", reason="needs the service")
pytest.importorskip("ray.serve", reason="needs Ray Serve")

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request

from rerank_plugins.config import RerankConfig
from rerank_plugins.distributed.messages import HttpAnswer, HttpRequest, answer_by, read_request
from rerank_plugins.distributed.replicas import Door, ModelReplica
from rerank_plugins.distributed.serving import ServeArgs, _deployment, build_app
from rerank_plugins.service.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.responses import Response

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ASKED = HttpRequest(
    "POST",
    "/v1/rerank",
    "",
    b"",
    ((b"content-type", b"application/json"),),
    json.dumps({"query": "red fox", "documents": ["blue sky", "a red fox"]}).encode(),
)
LIMITS = ServiceSettings()


def _request(asked: HttpRequest, part: int = 7) -> Request:
    """Return what Ray Serve hands over; the body comes in parts."""
    parts = [asked.body[at : at + part] for at in range(0, len(asked.body), part)]

    async def receive() -> dict[str, Any]:
        body = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    scope = {
        "type": "http",
        "method": asked.method,
        "path": asked.path,
        "root_path": asked.root_path,
        "query_string": asked.query_string,
        "headers": [*asked.headers, (b"Content-Length", b"%d" % len(asked.body))],
    }
    return Request(scope, receive)


class Handle:
    """Stands for Ray's handle: each call meets the next of *fates*, and is kept."""

    def __init__(self, *fates: Exception | Callable[[HttpRequest], Any]) -> None:
        self._fates = list(fates)
        self.asked: list[HttpRequest] = []
        self.answer = self

    async def remote(self, request: HttpRequest) -> HttpAnswer:
        self.asked.append(request)
        fate = self._fates.pop(0)
        if isinstance(fate, Exception):
            raise fate
        answer: HttpAnswer = await fate(request)
        return answer


Opener = Callable[..., ModelReplica]


@pytest.fixture
def open_replica(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> Iterator[Opener]:
    """Open replicas over fake scorers; their models are closed when the test ends."""
    monkeypatch.setattr("rerank_plugins.registry.open_scorer", lambda config: FakeScorer())
    opened: list[ModelReplica] = []

    def open_it(limits: ServiceSettings = LIMITS, *, keys: bool = False) -> ModelReplica:
        opened.append(ModelReplica(RerankConfig(model="fake"), limits, keys=keys))
        return opened[-1]

    yield open_it
    for replica in opened:
        for reranker in replica._app.state.service.models.rerankers:
            reranker.close()


@pytest.fixture
def replica(open_replica: Opener) -> ModelReplica:
    return open_replica()


async def _body(response: Response) -> Any:
    return json.loads(bytes(response.body))


async def test_a_replica_answers_as_the_service_does(replica: ModelReplica) -> None:
    await replica.check_health()
    response = await Door(Handle(replica.answer), LIMITS)(_request(ASKED))

    body = await _body(response)
    names = [name for name, _ in response.raw_headers]
    assert response.status_code == 200
    assert [result["index"] for result in body["results"]] == [1, 0]
    assert response.headers["content-type"].startswith("application/json")
    assert names.count(b"content-length") == names.count(b"content-type") == 1
    assert "x-request-id" in response.headers


async def test_a_request_whose_replica_dies_is_answered_by_another(replica: ModelReplica) -> None:
    handle = Handle(ActorDiedError(), ActorUnavailableError("", None), replica.answer)

    response = await Door(handle, LIMITS)(_request(ASKED))

    assert response.status_code == 200
    assert handle.asked[0] == handle.asked[1] == handle.asked[2]


async def test_a_request_that_kills_three_replicas_kills_no_fourth() -> None:
    handle = Handle(*(ActorDiedError() for _ in range(4)))

    response = await Door(handle, LIMITS)(_request(replace(ASKED, path="/v2/rerank")))

    assert len(handle.asked) == 3
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "3 replicas died" in (await _body(response))["message"]


async def test_where_too_many_wait_the_client_is_told_to_come_back() -> None:
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)

    response = await Door(Handle(full), LIMITS)(_request(ASKED))

    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


async def test_an_error_of_our_own_is_not_tried_again() -> None:
    handle = Handle(ZeroDivisionError(), ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        await Door(handle, LIMITS)(_request(ASKED))
    assert len(handle.asked) == 1


async def test_a_body_beyond_the_limit_is_not_read_to_its_end_and_refused_by_the_service(
    open_replica: Opener,
) -> None:
    limits = ServiceSettings(max_body_bytes=100)
    handle = Handle(open_replica(limits).answer)

    response = await Door(handle, limits)(_request(replace(ASKED, body=b"x" * 10_000)))

    assert response.status_code == 413
    assert len(handle.asked[0].body) == 101


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    limits, handle = ServiceSettings(body_timeout_s=0.05), Handle()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    response = await Door(handle, limits)(Request(_request(ASKED).scope, receive))

    assert response.status_code == 408
    assert "within 0.05 seconds" in bytes(response.body).decode()
    assert not handle.asked


async def test_a_client_that_hangs_up_in_its_body_is_no_error() -> None:
    handle = Handle()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    response = await Door(handle, LIMITS)(Request(_request(ASKED).scope, receive))

    assert response.status_code == 499
    assert not handle.asked


async def test_what_is_beyond_the_limit_of_a_body_is_left_unread() -> None:
    parts = 0

    async def receive() -> dict[str, Any]:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b"x" * 30, "more_body": parts < 1000}

    scope = _request(ASKED).scope
    read = await read_request(Request(scope, receive), 100)

    assert (parts, len(read.body)) == (4, 101)


async def test_headers_of_the_connection_are_not_sent_on() -> None:
    headers = ((b"Connection", b"close"), (b"Transfer-Encoding", b"chunked"), (b"X-A", b"1"))
    read = await read_request(_request(replace(ASKED, headers=headers)), 1000)

    assert read.headers == ((b"x-a", b"1"), (b"content-length", b"%d" % len(ASKED.body)))
    assert read.body == ASKED.body


async def test_an_application_sees_one_body_and_a_client_that_stays() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["path"], scope["root_path"], scope["query_string"], await receive()))
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.body", "body": b"2"})

    asked = HttpRequest("GET", "/x/y", "/x", b"q=1", (), b"body")
    answer = await answer_by(app, asked)

    assert answer == HttpAnswer(201, ((b"a", b"b"),), b"12")
    assert seen == [
        ("/x/y", "/x", b"q=1", {"type": "http.request", "body": b"body", "more_body": False})
    ]


def test_a_service_with_keys_does_not_come_up_open() -> None:
    with pytest.raises(ConfigError, match="RERANK_PLUGINS_SERVICE_API_KEYS on every node"):
        ModelReplica(RerankConfig(model="fake"), LIMITS, keys=True)


async def test_keys_are_those_of_the_environment(
    open_replica: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_PLUGINS_SERVICE_API_KEYS", "k1,k2")
    closed = open_replica(keys=True)
    with_key = replace(ASKED, headers=(*ASKED.headers, (b"authorization", b"Bearer k2")))

    assert (await closed.answer(ASKED)).status == 401
    assert (await closed.answer(with_key)).status == 200


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"replicas": 3}, "replicas: unknown; known are model, models"),
        ({"min_replicas": 0}, "min_replicas: Input should be greater than or equal to 1"),
        ({"min_replicas": 3, "max_replicas": 2}, r"at least min_replicas \(3\), got 2"),
        ({"model": "a", "models": {"b": "c"}}, "not both"),
        ({"settings": {"cache_entries": -1}}, "cache_entries: "),
        ({"settings": {"model": "a"}}, "settings: 'model' is not for here"),
        ({"limits": {"max_bodies": 1}}, "limits: unknown: max_bodies"),
        ({"limits": {"body_timeout_s": "soon"}}, "body_timeout_s: expected seconds above 0"),
        ({"limits": {"max_requests": 0}}, "max_requests: expected a whole number"),
        ({"limits": {"api_keys": ["k"]}}, "keys are read from RERANK_PLUGINS_SERVICE_API_KEYS"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_built(
    args: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_app(args)


def test_numbers_may_be_written_as_texts_as_serve_run_hands_them_over() -> None:
    assert ServeArgs.model_validate({"num_gpus": "0.5", "max_replicas": "4"}).num_gpus == 0.5


def test_replicas_between_two_numbers_follow_the_requests() -> None:
    told = _deployment(ServeArgs(min_replicas=2, max_replicas=5, num_gpus=0.25))
    fixed = _deployment(ServeArgs(min_replicas=3, max_replicas=3))

    assert told["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 5,
        "target_ongoing_requests": 16,
    }
    assert told["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.25}
    assert (fixed["num_replicas"], "autoscaling_config" in fixed) == (3, False)
    # Ray checks what it is told when the deployment is made.
    assert build_app({"max_replicas": 5, "num_gpus": 0.25}) is not None


def test_the_page_on_ray_names_every_argument_and_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`[^|]*) \| ([^|]*)\|", page, re.MULTILINE)
    told = {
        name: default
        for names, defaults in rows
        for name, default in zip_longest(re.findall(r"`(\w+)`", names), defaults.split(", "))
    }
    numbers = {name: float(told[name]) for name in told if "_" in name or name == "doors"}
    yaml = pytest.importorskip("yaml", reason="Ray Serve reads its configs with it")
    example = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0])

    assert sorted(told) == sorted(ServeArgs.model_fields)
    assert numbers == {name: ServeArgs.model_fields[name].default for name in numbers}
    assert len(numbers) == 10
    assert build_app(example["applications"][0]["args"]) is not None
