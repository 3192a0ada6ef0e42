"""A corpus that every Python has: the docstrings of its standard library."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

_NAMES = (
    "argparse array ast asyncio base64 bisect calendar cmath cmd collections concurrent.futures "
    "configparser contextlib copy csv dataclasses datetime decimal difflib doctest email.message "
    "enum fileinput fnmatch fractions functools getpass glob gzip hashlib heapq hmac html "
    "http.client http.server inspect io ipaddress itertools json keyword linecache locale logging "
    "mailbox math mimetypes multiprocessing.pool numbers operator os os.path pathlib pickle "
    "platform pprint queue random re sched secrets select shelve shlex shutil signal "
    "smtplib socket sqlite3 statistics string struct subprocess tarfile tempfile textwrap "
    "threading time timeit tokenize traceback types unicodedata unittest urllib.parse "
    "urllib.request uuid warnings weakref xml.etree.ElementTree zipfile zlib"
)
MODULES = tuple(_NAMES.split())

CHUNK_WORDS = 120
SHORTEST = 40
"""Shorter docstrings, in characters, say little more than the name."""


@dataclass(frozen=True)
class Docstring:
    """A piece of a docstring under the name of what it documents."""

    name: str
    text: str


def harvest(modules: Sequence[str] = MODULES) -> list[Docstring]:
    """Return the docstrings of *modules* with their public classes, functions and methods."""
    found: dict[str, Docstring] = {}
    for module_name in modules:
        for name, thing in _documented(importlib.import_module(module_name)):
            # Many names share a docstring, by inheritance or by alias: the first one keeps it.
            text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
            if len(text) < SHORTEST:
                continue
            for chunk in _chunks(text):
                found.setdefault(chunk, Docstring(name, f"{name}{_signature(thing)}\n{chunk}"))
    return list(found.values())


def _documented(module: ModuleType) -> Iterator[tuple[str, object]]:
    yield module.__name__, module
    for name in getattr(module, "__all__", None) or dir(module):
        thing = getattr(module, name, None)
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        # A module that lends what belongs to another is not its home.
        home = getattr(thing, "__module__", None) or module.__name__
        if home.split(".")[0].lstrip("_") != module.__name__.split(".")[0]:
            continue
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for method_name, method in vars(thing).items():
                if not method_name.startswith("_") and callable(method):
                    yield f"{module.__name__}.{name}.{method_name}", method


def _signature(thing: object) -> str:
    try:
        signature = str(inspect.signature(thing)) if inspect.isroutine(thing) else ""
    except (ValueError, TypeError):
        return ""
    # An address is another one in every run: the texts would differ, and the cache miss.
    return re.sub(r" at 0x[0-9a-f]+", "", signature)


def _chunks(text: str) -> Iterator[str]:
    """Cut *text* between paragraphs, into pieces of about `CHUNK_WORDS` words."""
    chunk: list[str] = []
    for paragraph in text.split("\n\n"):
        if chunk and len(" ".join([*chunk, paragraph]).split()) > CHUNK_WORDS:
            yield "\n\n".join(chunk)
            chunk = []
        chunk.append(paragraph)
    yield "\n\n".join(chunk)
