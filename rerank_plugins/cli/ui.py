"""``rerank-plugins ui``: a page to look at what reranking does."""

from __future__ import annotations

import argparse
from typing import Final

from rerank_plugins.cli.output import flush, print_line, print_note
from rerank_plugins.cli.settings import add_settings, chosen_config
from rerank_plugins.options import LEXICAL

HOST: Final = "127.0.0.1"
PORT: Final = 7860
MOST_PORT: Final = 65_535


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "ui",
        help="serve a page to look at what reranking does",
        description="Serve a page on which documents are ranked by one model or by two, side by "
        "side. It asks the models that are named here, and no others.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="models to choose from; that of the settings, and lexical",
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen on ({HOST})")
    parser.add_argument(
        "--port", type=_port, default=PORT, metavar="N", help=f"port to listen on, 0 any ({PORT})"
    )
    add_settings(parser, positional_model=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MOST_PORT):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {MOST_PORT}, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Take the port, open the models, serve until Ctrl-C."""
    config = chosen_config(args)
    # In this order: a missing package or a taken port should show before a model is loaded.
    from rerank_plugins.playground.asking import Playground
    from rerank_plugins.playground.server import bound, is_loopback, serve, url_of

    with bound(args.host, args.port) as taken:
        if not is_loopback(args.host):
            print_note(
                f"warning: {args.host} is not this machine alone: whoever reaches it can use this "
                "page, which asks for no password"
            )
        models = args.models or [config.model, LEXICAL]
        with Playground(config, models) as playground:
            print_line(f"playground of {', '.join(playground.names)} on {url_of(taken)}")
            flush()
            serve(playground, args.host, taken)
    return 0
