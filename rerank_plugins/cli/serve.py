"""``rerank-plugins serve``: models over HTTP, until a signal ends it."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rerank_plugins.cli.output import print_note
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.config import RerankConfig, service_api_keys
from rerank_plugins.errors import ConfigError
from rerank_plugins.service.models import public_name
from rerank_plugins.service.settings import MEGABYTE, ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.reranker import Reranker

_NAMED: Final = re.compile(r"([\w.-]+)=(.+)", re.ASCII)
_EXAMPLES: Final = """\
examples:
  rerank-plugins serve
  rerank-plugins serve BAAI/bge-reranker-v2-m3 --port 8080 --max-length 1024
  rerank-plugins serve small=embedded large=BAAI/bge-reranker-v2-m3
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "serve",
        help="serve models over HTTP, in the dialects of TEI, Infinity, Jina, Cohere, vLLM, NIM",
        description="Serve models over HTTP; SIGTERM or Ctrl-C lets it finish what it has begun.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="a model, or NAME=MODEL; the first is the default (the setting model)",
    )
    parser.add_argument("--name", metavar="NAME", help="what the one model is served as")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, default=8000, help="port to listen on; 0 takes a free one (8000)"
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys, one a line; RERANK_PLUGINS_SERVICE_API_KEYS has them parted by commas",
    )
    parser.add_argument(
        "--strict-models",
        action="store_true",
        help="refuse models that are not served, even where only one is",
    )
    _add_limits(parser)
    parser.add_argument(
        "--body-timeout-s",
        type=_count,
        default=int(ServiceSettings().body_timeout_s),
        metavar="N",
        help="seconds in which the body of a request must have come (60)",
    )
    parser.add_argument(
        "--drain-s",
        type=_count,
        default=30,
        metavar="N",
        help="seconds that requests have to end when it is told to end (30)",
    )
    parser.add_argument(
        "--log", choices=("text", "json", "off"), default="text", help="access log (text)"
    )
    add_settings(parser, positional_model=True)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    default = ServiceSettings()
    for flag, value, text in (
        ("--max-documents", default.max_documents, "documents of a request"),
        ("--max-characters", default.max_characters, "characters of a document or query"),
        ("--max-body-mb", default.max_body_bytes // MEGABYTE, "megabytes of a request"),
        (
            "--max-bodies-mb",
            default.max_bodies_bytes // MEGABYTE,
            "megabytes of all requests at a time",
        ),
        ("--max-requests", default.max_requests, "requests that are answered at a time"),
    ):
        parser.add_argument(
            flag, type=_count, default=value, metavar="N", help=f"most {text} ({value})"
        )


def run(args: argparse.Namespace) -> int:
    """Open the models, listen, serve."""
    named = _named(args.models or [chosen_config(args).model], args.name)
    configs = {name: _config(args, model) for name, model in named.items()}
    settings = _settings(args)
    # Imported before anything is loaded: an extra that is missing is told at once.
    from rerank_plugins.cli.server import listen, serve
    from rerank_plugins.metrics import PrometheusObserver
    from rerank_plugins.reranker import Reranker

    with listen(args.host, args.port) as sock:
        if not settings.api_keys and not _is_loopback(args.host):
            print_note(
                f"rerank-plugins: WARNING: {args.host} can be reached from other machines, and no "
                "keys are set: whoever reaches it can use it (see --api-key-file)"
            )
        _log(args.log)
        observer = PrometheusObserver()
        models: dict[str, Reranker] = {}
        try:
            for name, config in configs.items():
                own = {**dict(config), "observers": (observer,)}
                models[name] = Reranker.from_config(RerankConfig(**own))
                # Here, and not when the server starts: what is wrong is said as everywhere else.
                models[name].warmup()
            serve(models, settings, sock, drain_s=args.drain_s)
        finally:
            for reranker in models.values():
                reranker.close()
    return 0


def _config(args: argparse.Namespace, model: str) -> RerankConfig:
    """Return the settings of one model: flags that suit it may not suit the default one."""
    return chosen_config(argparse.Namespace(**{**vars(args), "model": model}))


def _named(models: Sequence[str], name: str | None) -> dict[str, str]:
    """Return models by the names that they are served as."""
    if name is not None and len(models) > 1:
        raise ConfigError("--name: several models are named one by one, as in NAME=MODEL")
    named: dict[str, str] = {}
    for written in models:
        found = _NAMED.fullmatch(written)
        own, model = found.groups() if found else (public_name(written), written)
        if (own := name or own) in named:
            raise ConfigError(f"two models are named {own!r}; write NAME=MODEL")
        named[own] = model
    return named


def _settings(args: argparse.Namespace) -> ServiceSettings:
    keys = [*service_api_keys()]
    if args.api_key_file is not None:
        try:
            lines = args.api_key_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"--api-key-file: cannot read {args.api_key_file}: {exc}") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            # An open service is not what somebody wants who names a file of keys.
            raise ConfigError(f"--api-key-file: no key in {args.api_key_file}")
        keys += found
    return ServiceSettings(
        max_documents=args.max_documents,
        max_characters=args.max_characters,
        max_body_bytes=args.max_body_mb * MEGABYTE,
        max_bodies_bytes=args.max_bodies_mb * MEGABYTE,
        max_requests=args.max_requests,
        body_timeout_s=args.body_timeout_s,
        strict_models=args.strict_models,
        api_keys=tuple(keys),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log(form: str) -> None:
    """Log to standard error: requests as *form* says, and what goes wrong."""
    from rerank_plugins.service.access import LOGGER, JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    for name in ("rerank_plugins", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
    LOGGER.setLevel(logging.CRITICAL if form == "off" else logging.INFO)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
