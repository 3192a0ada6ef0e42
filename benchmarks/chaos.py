"""Ten minutes of faults on purpose: who was wronged, and what was left? `--seconds`, `--seed`.

Callers in threads and on event loops, through both doors, ask rerankers that are closed and opened
again, of scorers that raise, run out of memory, give no numbers, stall and kill their workers. Each
answer and each error is checked; the command fails if any was not its caller's own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import chaos

STALL_S = 5.0
HANG_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()

    report = chaos.run(asked.seed, asked.seconds, stall_s=STALL_S, hang_s=HANG_S)

    print(f"{report.requests} requests in {asked.seconds:.0f} s, seed {asked.seed}")
    for title, counts in (("outcome", report.outcomes), ("fault", report.faults)):
        print(f"\n| {title} | times |\n|---|---|")
        for name, times in counts.most_common():
            print(f"| {name} | {times} |")
    warm, end = report.memory_mib
    print(f"\nmemory: {warm:.0f} MiB after the warm-up, {end:.0f} MiB at the end")
    for name in ("wrong", "hung", "left", "miscounted"):
        print(f"{name}: {getattr(report, name) or 'none'}")
    return 0 if report.faultless else 1


if __name__ == "__main__":
    sys.exit(main())
