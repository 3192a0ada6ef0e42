"""Serves behind Ray's HAProxy while processes of the application are killed; run by its test.

Writes, as JSON, how many requests were answered, and what was lost.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

WAIT_S = 150
PATIENT = {
    # On a busy machine Ray gives up starting HAProxy, and HAProxy a door that is late to answer.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": "2s",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": "2s",
}
NOT_UP = 3
VICTIMS = ["door", "models", "door"]
REQUESTS = 50
"""So many are answered before and after each kill."""


class Callers:
    """Six clients that ask one thing after another, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._url = url
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(6)
        self._calls = [self._pool.submit(self._ask, number) for number in range(6)]

    def end(self) -> None:
        self._ended.set()
        for call in self._calls:
            call.result(WAIT_S)

    def go_on(self, requests: int) -> None:
        """Wait for some more answers."""
        goal, until = self.answered + requests, time.monotonic() + WAIT_S
        while self.answered < goal and not self.lost:
            assert time.monotonic() < until, "no answer comes any more"
            time.sleep(0.01)

    def _ask(self, number: int) -> None:
        turn = 0
        with httpx.Client(base_url=self._url, timeout=WAIT_S) as client:
            while not self._ended.is_set():
                turn += 1
                documents = [f"blue sky {number} {turn}", f"a red fox {number} {turn}"]
                # Some bodies are longer than what HAProxy keeps of a request by default.
                documents += [f"{'x' * 200} {i}" for i in range(200 * (turn % 3 == 0))]
                body = {"query": f"red fox {number} {turn}", "documents": documents, "top_n": 1}
                try:
                    answer = client.post("/v1/rerank", json=body)
                    if [found["index"] for found in answer.json()["results"]] != [1]:
                        self.lost.append(answer.text)
                # Whatever it is, the test is to say it.
                except Exception as exc:  # noqa: BLE001
                    self.lost.append(repr(exc))
                self.answered += 1


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _doors_up(stats_port: int) -> int:
    """Return how many doors HAProxy sends requests to."""
    try:
        table = httpx.get(f"http://127.0.0.1:{stats_port}/stats;csv").text
    except httpx.HTTPError:
        return 0
    rows = csv.DictReader(table.splitlines())
    return sum("-door-" in row["svname"] and row["status"].startswith("UP") for row in rows)


def _kill(victim: str, callers: Callers, stats_port: int) -> None:
    """Kill one of the processes called *victim* among requests, once there is another door."""
    until = time.monotonic() + WAIT_S
    while _doors_up(stats_port) < 2:
        assert time.monotonic() < until, "no second door comes up"
        time.sleep(0.2)
    callers.go_on(REQUESTS)
    found = subprocess.run(
        ["pgrep", "-f", f"ray::ServeReplica:rerank:{victim}"],
        capture_output=True,
        text=True,
        check=True,
    )
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    callers.go_on(REQUESTS)


def main(told: Path) -> None:
    """Start Ray, serve, kill, and say in the file *told* what came of it."""
    stats_port, port = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= PATIENT | {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        }
        import ray
        from ray import serve

        from rerank_plugins.distributed import build_app

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        app = build_app({"model": "lexical", "min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5})
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app, name="rerank", route_prefix="/")
        except (ray.exceptions.RayError, TimeoutError) as exc:
            told.write_text(json.dumps(f"{type(exc).__name__}: {exc}"))
            sys.exit(NOT_UP)
        callers = Callers(f"http://127.0.0.1:{port}")
        try:
            for victim in VICTIMS:
                _kill(victim, callers, stats_port)
        finally:
            callers.end()
        told.write_text(json.dumps([callers.answered, callers.lost]))
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
