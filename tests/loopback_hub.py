"""A server that speaks as much of the Hugging Face hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

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
