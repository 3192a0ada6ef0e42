"""What a second replica, a thread on the same CPU, is worth: pairs/s with one and with two."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the root stands in the path now

from rerank_plugins import Reranker  # noqa: E402
from tests.tiny_torch import make_pairs, write_torch_model  # noqa: E402

ROUNDS = 5
DOCUMENTS = {"embedded": 20, "torch": 2000}


def documents_of(kind: str, salt: str) -> list[str]:
    words = [word for pair in make_pairs(40) for word in " ".join(pair).split()]
    count = DOCUMENTS[kind]
    length = 200 if kind == "embedded" else 40
    return [
        " ".join(words[(i * 7 + k * (i % 13 + 1)) % len(words)] for k in range(length))
        + f" {salt} {i}"
        for i in range(count)
    ]


def pairs_per_s(reranker: Reranker, kind: str, salt: str) -> float:
    documents = documents_of(kind, salt)
    began_s = time.perf_counter()
    reranker.rank("what does the fox eat?", documents)
    return len(documents) / (time.perf_counter() - began_s)


def main() -> None:
    print("| scorer | one replica | two | two / one, median (least to most) |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        write_torch_model(Path(folder))
        for name, model, threads in (
            ("embedded in onnxruntime, on all cores", "embedded", None),
            ("torch, a tiny BERT, on all cores", folder, None),
            ("torch, a tiny BERT, on one core", folder, 1),
        ):
            if sys.argv[1:] and name.split()[0] not in sys.argv[1:]:
                continue
            if threads is not None:
                torch.set_num_threads(threads)
            kind = "embedded" if model == "embedded" else "torch"
            with (
                Reranker(model, cache_entries=0) as one,
                Reranker(model, cache_entries=0, replicas=2) as two,
            ):
                one.warmup()
                two.warmup()
                found = [
                    (pairs_per_s(one, kind, f"a{n}"), pairs_per_s(two, kind, f"b{n}"))
                    for n in range(ROUNDS)
                ]
            ratios = [b / a for a, b in found]
            first, second = (statistics.median(each) for each in zip(*found, strict=True))
            print(
                f"| {name} | {first:.0f}/s | {second:.0f}/s | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
