"""The command line: ``rerank-plugins`` and its verbs, one file each."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from rerank_plugins.cli import batch, export, info, rank, serve, ui
from rerank_plugins.cli import eval as eval_verb
from rerank_plugins.cli.output import OutputError, flush, print_line, print_note
from rerank_plugins.errors import ConfigError, InputError, MissingExtraError, RerankError

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED = 1
"""Exit code of a run that went wrong: a model that does not load, a timeout."""

WRONG_CALL = 2
"""Exit code of a command that has to be written differently, or needs an extra installed."""

_CALLERS_ERRORS = (ConfigError, InputError, MissingExtraError)

INTERRUPTED = 130
PIPE_CLOSED = 141
"""What a shell reports for a program that a signal ended: 128 + SIGINT, 128 + SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a malformed command line ends the program."""
    try:
        return _run(argv)
    except RerankError as exc:
        # Notes tell what became of the fallbacks.
        _complain("\n".join([str(exc), *getattr(exc, "__notes__", ())]))
        return WRONG_CALL if isinstance(exc, _CALLERS_ERRORS) else FAILED
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except OutputError as exc:
        _forget_stdout()
        _complain(f"cannot write: {exc}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(argv: Sequence[str] | None) -> int:
    # A closed output must show itself before the work is done.
    flush()
    try:
        args = _parse(argv)
        code: int = args.run(args)
        return code
    finally:
        # Help and version end the program from within; a closed pipe must show itself here.
        flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command; paths and models may stand behind flags, where argparse looks for none."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if not rest:
        return args
    free = next((name for name in ("paths", "models") if name in args), None)
    if free is None or any(part.startswith("-") and part != "-" for part in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    getattr(args, free).extend(rest)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rerank-plugins",
        description="Rank documents by how well they answer a query, on this machine.",
    )
    parser.add_argument("--version", action=_Version)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in (rank, eval_verb, batch, info, export, serve, ui):
        verb.add_parser(verbs)
    return parser


class _Version(argparse.Action):
    """Prints the version; read when asked for, since package metadata take time to find."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print_line(f"rerank-plugins {version('rerank-plugins')}")
        parser.exit()


def _complain(message: str) -> None:
    print_note(f"rerank-plugins: {'; '.join(message.splitlines())}")


def _forget_stdout() -> None:
    """Point standard output nowhere: the interpreter would complain again when it flushes it."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
