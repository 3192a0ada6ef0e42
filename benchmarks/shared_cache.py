"""What a shared cache costs beside scoring: 100 pairs looked up, written, and ranked."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rerank_plugins import RerankConfig, Reranker  # noqa: E402  the root stands in the path now
from rerank_plugins.jobs import CachedPair  # noqa: E402
from rerank_plugins.tiers.packing import namespace, pack  # noqa: E402
from rerank_plugins.tiers.store import find_store  # noqa: E402
from tests.tiers.redis_server import BINARY, RedisServer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS, ROUNDS, FULL = 100, 20, 20_000
WORDS = ["river", "fox", "stone", "cloud", "water", "light", "house", "tree", "moves"]


def median_ms(call: Callable[[int], object], rounds: int = ROUNDS) -> float:
    times = []
    for i in range(rounds):
        began_s = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times) * 1000


def documents(salt: int) -> list[str]:
    """Return 100 documents of 60 words, all new."""
    return [
        " ".join(WORDS[(i * 7 + k * (i % 13 + 1) + salt) % len(WORDS)] for k in range(58))
        + f" {salt} {i}"
        for i in range(PAIRS)
    ]


def items(salt: int) -> list[tuple[bytes, bytes]]:
    found = []
    for i in range(PAIRS):
        key = (salt * PAIRS + i).to_bytes(16, "big")
        value = pack(key, CachedPair(i / 7, truncated=False, tokens=80))
        assert value is not None
        found.append((namespace() + key, value))
    return found


def stores(name: str, where: str) -> None:
    store = find_store(RerankConfig(shared_cache=where))()
    for salt in range(FULL // PAIRS):
        store.set_many(items(salt))
    keys = [[key for key, _ in items(salt)] for salt in range(ROUNDS)]
    gone = [[key for key, _ in items(salt + FULL)] for salt in range(ROUNDS)]
    row(f"{name}: 100 pairs looked up, all there", median_ms(lambda i: store.get_many(keys[i])))
    row(f"{name}: none there", median_ms(lambda i: store.get_many(gone[i])))
    row(f"{name}: 100 pairs written", median_ms(lambda i: store.set_many(items(i + 2 * FULL))))
    store.close()


def ranked(name: str, where: str | None) -> None:
    with Reranker(shared_cache=where, shared_cache_timeout_s=5) as reranker:
        reranker.warmup()
        texts = [documents(i) for i in range(6)]
        cold = median_ms(lambda i: reranker.rank("what eats the fox?", texts[i]), 6)
        row(f"rank of 100, embedded, {name}: nothing known", cold)
        if where is not None:
            time.sleep(0.5)
        reranker.clear_cache()
        again = median_ms(lambda i: reranker.rank("what eats the fox?", texts[i]), 6)
        what = "documents' features known" if where is None else "all in the shared cache"
        row(f"rank of 100, embedded, {name}: {what}", again)
        row(
            f"rank of 100, embedded, {name}: all in memory",
            median_ms(lambda i: reranker.rank("what eats the fox?", texts[i]), 6),
        )


def row(name: str, milliseconds: float) -> None:
    print(f"{name:<70} {milliseconds:8.2f} ms", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores("folder", folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"folder: {size / (FULL + ROUNDS * PAIRS):.0f} bytes a pair")
        ranked("no shared cache", None)
        ranked("a folder", folder)
        if BINARY is None:
            return
        with RedisServer(Path(folder)) as server:
            stores("Redis", server.url)
            ranked("Redis", server.url)
            import redis

            client = redis.Redis.from_url(server.url)
            used = client.info("memory")["used_memory_dataset"] / client.dbsize()
            print(f"Redis: {used:.0f} bytes a pair")
            client.close()


if __name__ == "__main__":
    main()
