"""A batch on Ray Data: the chunks of `batch`, ranked by a pool of actors, into the same parts."""

from __future__ import annotations

import asyncio
import logging
import pickle
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_plugins.batch.chunks import read_chunk
from rerank_plugins.batch.parts import Parts, check_identity
from rerank_plugins.batch.ranking import ChunkRanker
from rerank_plugins.batch.sources import open_source
from rerank_plugins.distributed.rays import import_ray, running
from rerank_plugins.errors import InputError, RerankError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rerank_plugins.batch.running import Work
    from rerank_plugins.batch.sources import Source

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayBatch:
    """Ranks the chunks of a batch on Ray; hand it to `run_batch` as *rank_chunks*.

    From *min_workers* to *max_workers* actors hold a model each, and reserve *cpus* and *gpus*
    (0.5 puts two on a GPU). The input and the folder of the output must be at the same path on
    every node. *address* is that of a cluster; without it Ray is joined where `RAY_ADDRESS` says,
    or started here. A worker that dies is replaced, and its chunk ranked again.

    Raises:
        InputError: a number is out of range.
    """

    min_workers: int = 1
    max_workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.min_workers < 1:
            raise InputError(f"min_workers must be at least 1, got {self.min_workers}")
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise InputError(
                f"max_workers must be at least min_workers ({self.min_workers}), "
                f"got {self.max_workers}"
            )
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not value >= 0:
                raise InputError(f"{name} must be at least 0, got {value}")

    def __call__(self, work: Work, on_ranked: Callable[[int], object]) -> None:
        """Rank all chunks of *work*, in any order.

        Raises:
            RerankError: what a worker raised; `ScoringError` for what Ray did.
        """
        ray = import_ray("data")
        with running(ray, self.address), _no_bars(ray):
            self._tell_if_nothing_fits(ray.nodes())
            # Blocks of one chunk: what is lost with a worker, and what a free one takes next.
            chunks = ray.data.from_items(
                [{"place": place} for place in range(len(work.chunks))],
                override_num_blocks=len(work.chunks),
            )
            ranked = chunks.map(
                ChunkWorker,
                fn_constructor_args=(_at_full_paths(work),),
                compute=ray.data.ActorPoolStrategy(
                    min_size=self.min_workers, max_size=self.max_workers
                ),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            identity = work.identity
            for row in ranked.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])  # noqa: S301  it is our own worker's
                check_identity(identity, row["identity"], work.parts.folder)
                identity = row["identity"]
                on_ranked(row["pairs"])

    def _tell_if_nothing_fits(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Log why nothing happens: Ray waits, as a cluster may grow."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        there = [node["Resources"] for node in nodes if node["Alive"]]
        if any(all(has.get(n, 0) >= much for n, much in wanted.items()) for has in there):
            return
        most = {name: max((has.get(name, 0) for has in there), default=0) for name in wanted}
        _logger.warning(
            "no node of the Ray cluster has the %g CPUs and %g GPUs that a worker reserves, and "
            "the batch waits for one; nodes have up to %g CPUs and %g GPUs",
            *wanted.values(),
            *most.values(),
        )


@contextmanager
def _no_bars(ray: Any) -> Iterator[None]:  # noqa: ANN401  half typed
    """Keep Ray Data from drawing bars of its own beside the caller's."""
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = shown


class ChunkWorker:
    """An actor of the pool: opens the model at its first chunk, and keeps it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._held = ExitStack()
        self._opened: tuple[ChunkRanker, Source] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Rank a chunk and write its part; an error of ours is handed over as it is."""
        told = {"pairs": 0, "identity": "", "error": b""}
        try:
            return told | self._rank(row["place"])
        except RerankError as exc:
            # What a task raises comes out of Ray as another error, and as a text.
            return told | {"error": pickle.dumps(exc)}

    def _rank(self, place: int) -> dict[str, object]:
        work, chunk = self._work, self._work.chunks[place]
        ranker, source = self._open()
        ranked = asyncio.run(ranker.rank(chunk.first, read_chunk(source, chunk)))
        work.parts.write(chunk.number, ranked, ranker.identity)
        return {"pairs": chunk.pairs, "identity": ranker.identity}

    def _open(self) -> tuple[ChunkRanker, Source]:
        if self._opened is None:
            work = self._work
            ranker = self._held.enter_context(ChunkRanker(work.config, work.options))
            check_identity(work.identity, ranker.identity, work.parts.folder)
            source = self._held.enter_context(closing(open_source(work.source)))
            self._opened = ranker, source
        return self._opened


def _at_full_paths(work: Work) -> Work:
    """Workers stand in other folders."""
    return replace(
        work, source=Path(work.source).resolve(), parts=Parts(work.parts.folder.resolve())
    )
