"""One request and its answer over HTTP: the one place that knows httpx, and what it raises."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.errors import MissingExtraError, first_line
from rerank_plugins.scorers.remote.answers import read_json
from rerank_plugins.scorers.remote.failures import Failure, Kind, kind_of, retry_after_s, said
from rerank_plugins.server_addresses import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import ModuleType

    import httpx
    from pydantic import SecretStr

CONNECT_TIMEOUT_S: Final = 5.0
"""A server that lives answers a connection at once, however busy it is."""

KEEP_ALIVE_S: Final = 2.0
"""How long an idle connection is used again: less than any server's patience, uvicorn's 5 s."""

MOST_ANSWER_BYTES: Final = 64 * 2**20
"""An answer has some dozens of bytes for each document; no more than this is read."""


def import_httpx() -> ModuleType:
    """Return the module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("httpx")
    except ModuleNotFoundError:
        raise MissingExtraError(
            package="httpx", extra="remote", needed_for="a model behind an address"
        ) from None


class Exchange:
    """A pool of connections to the servers of one scorer; of one event loop.

    Proxies are those of the variables that httpx reads, but for addresses of this machine.

    Raises:
        Failure: what those variables name cannot be used.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, addresses: Sequence[str], api_key: SecretStr | None) -> None:
        self._httpx: Any = import_httpx()
        # Never a plain string in a frame that an error passes: some log its local variables.
        self._key = api_key
        try:
            self._client = self._opened(addresses)
        except (ImportError, OSError) as exc:
            why = first_line(exc)
        except (ValueError, self._httpx.InvalidURL) as exc:
            # Its words may be a part of the proxy's password.
            why = type(exc).__name__
        else:
            return
        raise Failure(
            Kind.MISSING,
            "the proxy or the certificates that variables name (HTTPS_PROXY, NO_PROXY, "
            f"SSL_CERT_FILE and their kin) cannot be used: {why}",
        )

    def _opened(self, addresses: Sequence[str]) -> httpx.AsyncClient:
        headers = {
            "user-agent": f"rerank-plugins/{version('rerank-plugins')}",
            "accept": "application/json",
            # A few bytes that are packed twice unpack into gigabytes before they can be counted.
            "accept-encoding": "identity",
        }
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key.get_secret_value()}"
        client: httpx.AsyncClient = self._httpx.AsyncClient(
            headers=headers,
            timeout=self._httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=self._httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            mounts={address: None for address in addresses if is_loopback(address)},
            follow_redirects=False,
        )
        return client

    async def get(self, address: str, path: str, *, seconds: float) -> object:
        """Return the JSON at *path*.

        Raises:
            Failure: there is none within *seconds*.
        """
        return await self._send("GET", address, path, seconds)

    async def post(
        self,
        address: str,
        path: str,
        body: Mapping[str, object],
        *,
        seconds: float,
        texts: Iterable[str],
    ) -> object:
        """Return what is answered to *body*; *texts* of it are never repeated.

        Raises:
            Failure: there is no answer within *seconds*, or one that is no success.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        return await self._send("POST", address, path, seconds, content=content, texts=texts)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(
        self,
        method: str,
        address: str,
        path: str,
        seconds: float,
        *,
        content: bytes | None = None,
        texts: Iterable[str] = (),
    ) -> object:
        headers = {} if content is None else {"content-type": "application/json"}
        url = address + path
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, url, content=content, headers=headers) as response,
            ):
                body = await _read(response, url)
        except TimeoutError:
            failure = Failure(Kind.DOWN, f"{url} gave no answer within {seconds:.3g} s")
        except self._httpx.RequestError as exc:
            failure = self._translated(exc, url)
        except (self._httpx.InvalidURL, ValueError) as exc:
            # A host that no resolver can be asked for; httpx has no error of its own for some.
            words = first_line(exc) or type(exc).__name__
            failure = Failure(Kind.DOWN, f"{url} is no address that can be asked: {words}")
        else:
            if response.status_code == 200:
                return read_json(body, url)
            failure = self._refusal(response, body, url, texts)
        # Outside of what is handled: httpx's errors hold the request, and the key in its headers.
        raise failure

    def _translated(self, error: httpx.RequestError, url: str) -> Failure:
        httpx = self._httpx
        if isinstance(error, httpx.TimeoutException | httpx.ConnectError | httpx.ProxyError):
            kind = Kind.DOWN
        elif isinstance(error, httpx.TransportError):
            kind = Kind.CUT
        else:
            kind = Kind.BROKEN
        words = first_line(error) or type(error).__name__
        return Failure(kind, f"{url} cannot be asked: {words}")

    def _refusal(
        self, response: httpx.Response, body: bytes, url: str, texts: Iterable[str]
    ) -> Failure:
        status = response.status_code
        kind = kind_of(status)
        words = f"{url} answered {status}"
        if response.is_redirect:
            words += ", a redirect, which is not followed; make the address that it leads to model"
        elif kind is Kind.DENIED:
            words += ": it wants another api_key" if self._key else ": it wants an api_key"
        else:
            secret = None if self._key is None else self._key.get_secret_value()
            words += said(body, texts, secret=secret)
        wait = retry_after_s(response.headers.get("retry-after"), time.time())
        return Failure(kind, words, retry_after_s=wait)


async def _read(response: httpx.Response, url: str) -> bytes:
    """Read a body as it comes, as far as it may go."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        if response.status_code == 200:
            raise Failure(Kind.BROKEN, f"{url} answered with what is packed, and was asked not to")
        return b""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MOST_ANSWER_BYTES:
            raise Failure(Kind.BROKEN, f"{url} answers without end")
    return bytes(body)
