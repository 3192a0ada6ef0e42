"""Opening a remote scorer: every server says what it serves, and it must be one and the same."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from rerank_plugins.errors import ConfigError, ModelLoadError
from rerank_plugins.scorers.remote.exchange import Exchange
from rerank_plugins.scorers.remote.failures import Failure, Kind
from rerank_plugins.scorers.remote.health import MOST_STRIKES, Fleet
from rerank_plugins.scorers.remote.identity import identify
from rerank_plugins.scorers.remote.scorer import RemoteScorer
from rerank_plugins.server_addresses import addresses_of, is_loopback, is_plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rerank_plugins.config import RerankConfig
    from rerank_plugins.scorers.remote.health import Server
    from rerank_plugins.scorers.remote.identity import Served

logger = logging.getLogger(__name__)

INTRODUCTION_S: Final = 10.0
"""How long a server may take to say what it is: no model has to run for that."""

_AWAY: Final = (Kind.DOWN, Kind.CUT, Kind.BUSY, Kind.FAULTY)
"""Failures that may be over soon: one of several servers may be gone when a scorer is opened."""


def open_remote_scorer(config: RerankConfig) -> RemoteScorer:
    """Ask the servers of *config* what they serve, and open a scorer over them.

    Raises:
        ConfigError: they serve different models.
        ModelLoadError: none can be asked, or one is not what it should be.
        MissingExtraError: httpx is not installed.
    """
    addresses = addresses_of(config.model)
    plain = [each for each in addresses if is_plain(each) and not is_loopback(each)]
    if config.api_key is not None and plain:
        logger.warning("api_key goes to %s unencrypted; use https", ", ".join(plain))
    fleet = Fleet(addresses)
    try:
        exchange = Exchange(addresses, config.api_key)
    except Failure as failure:
        raise ModelLoadError(config.model, str(failure)) from None
    introduce = partial(_introduce, exchange, config)
    runner = asyncio.Runner()
    try:
        served = runner.run(_open(config.model, fleet, introduce))
    except BaseException:
        runner.run(exchange.close())
        runner.close()
        raise
    return RemoteScorer(runner, exchange, fleet, introduce, served)


async def _introduce(exchange: Exchange, config: RerankConfig, server: Server) -> Served:
    get = partial(exchange.get, server.address, seconds=INTRODUCTION_S)
    return await identify(get, server.address, config.dialect, config.remote_model)


async def _open(
    model: str, fleet: Fleet, introduce: Callable[[Server], Awaitable[Served]]
) -> Served:
    """Let every server say what it serves; one may be away, if another is there."""
    found = await asyncio.gather(*(_heard(introduce, server) for server in fleet.servers))
    failures = [each for each in found if isinstance(each, Failure)]
    wrong = [each for each in failures if each.kind not in _AWAY]
    if wrong or len(failures) == len(found):
        raise ModelLoadError(model, "; ".join(map(str, wrong or failures)))
    first, address = None, ""
    for server, each in zip(fleet.servers, found, strict=True):
        if isinstance(each, Failure):
            # It says what it serves before it is asked for anything.
            server.failed(MOST_STRIKES, fleet.clock(), str(each))
            continue
        if first is None:
            first, address = each, server.address
        elif each.identity != first.identity:
            raise ConfigError(
                f"model: its servers would not answer alike; {address} serves {first.identity}, "
                f"{server.address} {each.identity}"
            )
        server.introduced(each, fleet.clock())
    if first is None:
        raise AssertionError("a server that did not fail has said what it serves")
    return first


async def _heard(
    introduce: Callable[[Server], Awaitable[Served]], server: Server
) -> Served | Failure:
    try:
        return await introduce(server)
    except Failure as failure:
        return failure
