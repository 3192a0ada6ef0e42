"""How far a model's logits move in half precision, and what that does to rankings.

``python benchmarks/drift.py FOLDER``: torch in float32 against torch in bf16 and fp16, on the CPU.
``rerank-plugins export`` measures the same of ONNX files. The weights should be trained ones.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from workloads import SHAPES, make_requests

from rerank_plugins.config import RerankConfig
from rerank_plugins.export.drift import measure_drift
from rerank_plugins.options import Precision
from rerank_plugins.scorers.torch.opening import open_torch_scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from workloads import Request


def logits_of(
    folder: str, precision: str, requests: Sequence[Request], max_length: int
) -> list[NDArray[np.float32]]:
    """Return one array (documents,) per request."""
    config = RerankConfig(
        model=folder, backend="torch", precision=precision, device="cpu", max_length=max_length
    )
    scorer = open_torch_scorer(config)
    try:
        found = []
        for request in requests:
            pairs = scorer.encode(request.query, request.documents)
            parts = [scorer.forward(pairs[i : i + 8]) for i in range(0, len(pairs), 8)]
            found.append(np.concatenate(parts))
        return found
    finally:
        scorer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a cross-encoder's folder")
    parser.add_argument("--precision", default="bf16,fp16")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--requests", type=int, default=12, help="per kind of text")
    args = parser.parse_args()
    requests = [
        request
        for shape in ("RAG chunk", "science")
        for request in make_requests(SHAPES[shape], 20 * args.requests, documents=20)
    ]
    exact = logits_of(args.folder, Precision.FP32, requests, args.max_length)
    pairs = np.concatenate(exact)
    print(
        f"{len(pairs)} pairs, {len(requests)} queries; float32 logits deviate by {pairs.std():.2f}"
    )
    print("| precision | mean | 99th percentile | largest | Spearman | best kept |")
    print("|---|--:|--:|--:|--:|--:|")
    for precision in args.precision.split(","):
        drift = measure_drift(exact, logits_of(args.folder, precision, requests, args.max_length))
        print(
            f"| {precision} | {drift.mean:.4f} | {drift.p99:.4f} | {drift.max:.4f} "
            f"| {drift.spearman:.5f} | {drift.top1_kept:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
