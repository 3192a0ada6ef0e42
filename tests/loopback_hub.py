"""A server that speaks as much of the Hugging Face hub's protocol as a download needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNREACHABLE = "http://127.0.0.1:9"

CLIENT = """
import json, sys
from functools import partial
from rerank_plugins import scorers
from rerank_plugins.config import RerankConfig
from rerank_plugins.options import Precision
from rerank_plugins.errors import RerankError
from rerank_plugins.models.files import find_model
from rerank_plugins.models.weights import choose_onnx, choose_torch, wanted_precisions
from rerank_plugins.scorers.onnx.scorer import OnnxScorer

def find(name, kind="onnx", precision="auto", allow_pickle=False, **settings):
    wanted = wanted_precisions(Precision(precision), cuda=False)
    if kind == "auto":
        return scorers._find_files(RerankConfig(model=name, allow_pickle=allow_pickle, **settings))
    choose = {
        "onnx": partial(choose_onnx, wanted=wanted),
        "torch": partial(choose_torch, allow_pickle=allow_pickle),
    }
    return find_model(name, choose=choose[kind], **settings)

answers = []
for name, settings in json.loads(sys.argv[1]):
    try:
        files = find(name, **settings)
        folder = files.folder
        there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        weights = [path.name for path in files.weights]
        answers.append({"version": files.version, "weights": weights, "there": there})
        answers[-1]["backend"] = files.backend
        if name == "acme/ranker":
            scorer = OnnxScorer.open(RerankConfig(model=name, **settings))
            answers[-1]["logits"] = scorer.forward(scorer.encode("cat", ["dog", "tree"])).tolist()
            answers[-1]["identity"] = scorer.identity
    except RerankError as exc:
        answers.append({"error": f"{type(exc).__name__}: {exc}"})
print("ANSWERS" + json.dumps(answers))
"""

COMMIT = "c0ffee" * 6 + "c0de"
OLD_COMMIT = "01d" * 13 + "0"


class Hub(BaseHTTPRequestHandler):
    """GET /api/models/ID[/revision/R], HEAD and GET /ID/resolve/R/FILE, with the headers."""

    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            name, _, revision = path.removeprefix("api/models/").partition("/revision/")
            self._list(name, revision or "main")
        else:
            name, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._file(name, revision, file)

    def _list(self, name: str, revision: str) -> None:
        folder = self.root / name
        if name == "acme/broken":
            return self._send(500, b"{}")
        if name == "acme/token":
            return self._send(
                401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in {"main", "v1", COMMIT, OLD_COMMIT}:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        listing = {
            "id": name,
            "sha": OLD_COMMIT if revision == "v1" else COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": file} for file in sorted(files)],
        }
        return self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        path = self.root / name / file
        if name == "acme/gated":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        body = path.read_bytes()
        commit = OLD_COMMIT if revision in {"v1", OLD_COMMIT} else COMMIT
        etag = hashlib.sha256(body).hexdigest()
        return self._send(200, body, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        pass


@contextlib.contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the models in *root*; gives the hub's address, and the list of what was asked of it."""
    handler = type("Handler", (Hub,), {"root": root, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.requests
    server.shutdown()
    server.server_close()
    thread.join()


def ask(endpoint: str, home: Path, *calls: tuple[str, dict[str, Any]], **env: str) -> list[Any]:
    """Find models in a process of its own; returns what was found, or the error, of each."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(calls)],
        env=outside
        | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout.partition("ANSWERS")[2])
    assert len(answers) == len(calls)
    return answers
