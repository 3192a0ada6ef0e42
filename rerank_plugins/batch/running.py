"""A batch from beginning to end: survey, parts, join; what ranks the chunks is handed in."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rerank_plugins.batch.chunks import read_chunk, survey
from rerank_plugins.batch.joining import check_output, join
from rerank_plugins.batch.lock import only_one
from rerank_plugins.batch.options import BatchOptions
from rerank_plugins.batch.parts import Parts, check_identity
from rerank_plugins.batch.ranking import ChunkRanker
from rerank_plugins.batch.sources import open_source
from rerank_plugins.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rerank_plugins.batch.chunks import Chunk, Survey
    from rerank_plugins.batch.queries import Item
    from rerank_plugins.config import RerankConfig

AT_ONCE: Final = 2
"""Chunks that are ranked at the same time: the end of one leaves no batch half empty."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to rank, where it is read, and where its parts go."""

    source: Path
    parts: Parts
    chunks: Sequence[Chunk]
    config: RerankConfig
    options: BatchOptions
    identity: str | None
    """Of the scorer of the parts that are there already."""


class Progress(Protocol):
    """Is told how far a batch is; each method may do nothing."""

    def read(self, queries: int) -> None:
        """So many more queries of the input were looked at."""
        ...

    def begins(self, pairs: int, done: int) -> None:
        """Ranking begins: so many pairs in all, so many of them done before."""
        ...

    def ranked(self, pairs: int) -> None:
        """So many more pairs are ranked and kept."""
        ...


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch came to: what the output holds, and what this run did of it.

    ``ranked_pairs`` are those of this run, in ``seconds``, with the opening of the model.
    """

    output: Path
    queries: int
    pairs: int
    rows: int
    skipped: int
    scorers: Mapping[str, int]
    ranked_pairs: int
    seconds: float

    @property
    def pairs_per_s(self) -> float:
        """Pairs ranked in a second of this run; 0 where there were none."""
        return self.ranked_pairs / self.seconds if self.seconds else 0.0


RankChunks = Callable[[Work, Callable[[int], object]], None]
"""Ranks all chunks of a work into its parts, and tells of each how many pairs it had."""


def run_batch(
    source: Path,
    output: Path,
    config: RerankConfig,
    options: BatchOptions | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    rank_chunks: RankChunks | None = None,
) -> BatchResult:
    """Rank every query of *source* and write the rows of their documents to *output*.

    Finished chunks are kept beside the output until it is written; *resume* goes on from those of a
    batch that was broken off. *force* replaces an output, and begins anew where there are parts.
    Not for an event loop's thread, which it would hold.

    Raises:
        InputError: a file cannot be read or written or is in the way, or a query is bad.
        ConfigError: what is there to go on with is of another input, settings or scorer.
        RerankError: what `Reranker.rank` raises; what is done by then is kept.
    """
    options = options or BatchOptions()
    progress = progress or _Silent()
    check_output(output)
    parts = Parts.beside(output)
    with ExitStack() as held:
        found = _survey(source, output, options, progress)
        manifest = _manifest(found, config, options)
        _prepare(parts, output, manifest, held, resume=resume, force=force)
        done = parts.done()
        chunks = [chunk for chunk in found.chunks if chunk.number not in done]
        pairs = sum(chunk.pairs for chunk in chunks)
        progress.begins(found.pairs, found.pairs - pairs)
        begun = time.perf_counter()
        if chunks:
            work = Work(source, parts, chunks, config, options, parts.identity())
            _rank(work, rank_chunks or rank_here, progress)
        seconds = time.perf_counter() - begun
        joined = join(parts, len(found.chunks), output, texts=options.texts)
        parts.remove()
    return BatchResult(output, **asdict(joined), ranked_pairs=pairs, seconds=seconds)


def rank_here(work: Work, on_ranked: Callable[[int], object]) -> None:
    """Rank chunks on this machine, in the order of the input."""
    asyncio.run(_rank_here(work, on_ranked))


async def _rank_here(work: Work, on_ranked: Callable[[int], object]) -> None:
    under_way: deque[asyncio.Task[int]] = deque()
    ranker = await asyncio.to_thread(ChunkRanker, work.config, work.options)
    with ranker, closing(open_source(work.source)) as source:
        check_identity(work.identity, ranker.identity, work.parts.folder)
        try:
            for chunk in work.chunks:
                items = await asyncio.to_thread(read_chunk, source, chunk)
                task = asyncio.create_task(_rank_chunk(ranker, chunk, items, work.parts))
                under_way.append(task)
                if len(under_way) == AT_ONCE:
                    on_ranked(await under_way.popleft())
            while under_way:
                on_ranked(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def _rank_chunk(
    ranker: ChunkRanker, chunk: Chunk, items: Sequence[Item], parts: Parts
) -> int:
    ranked = await ranker.rank(chunk.first, items)
    await asyncio.to_thread(parts.write, chunk.number, ranked, ranker.identity)
    return chunk.pairs


def _survey(source: Path, output: Path, options: BatchOptions, progress: Progress) -> Survey:
    with closing(open_source(source)) as opened:
        if output.exists() and output.samefile(source):
            raise InputError(f"{output}: is the input")
        return survey(
            opened,
            options.chunk_pairs,
            skip_bad=options.on_bad == "skip",
            on_item=lambda: progress.read(1),
        )


def _manifest(found: Survey, config: RerankConfig, options: BatchOptions) -> dict[str, object]:
    return {
        "input": {"queries": found.items, "pairs": found.pairs, "digest": found.digest},
        "settings": options.identity(config),
    }


def _prepare(
    parts: Parts,
    output: Path,
    manifest: Mapping[str, object],
    held: ExitStack,
    *,
    resume: bool,
    force: bool,
) -> None:
    """Make the folder of parts, or take that of an earlier batch, and hold it."""
    if parts.exist():
        held.enter_context(only_one(parts.folder))
        if resume:
            parts.go_on(manifest)
            return
        if not force:
            raise InputError(
                f"{parts.folder}: an earlier batch was broken off; --resume goes on with it, "
                "--force begins anew"
            )
        parts.remove()
    if output.exists() and not force:
        raise InputError(f"{output}: is there already; --force replaces it")
    parts.begin(manifest)
    held.enter_context(only_one(parts.folder))


def _rank(work: Work, rank_chunks: RankChunks, progress: Progress) -> None:
    """Rank what is left, and say of a failure what becomes of what was done."""
    try:
        rank_chunks(work, progress.ranked)
    except BaseException as exc:
        if work.parts.done():
            exc.add_note(f"what is done is in {work.parts.folder}; --resume goes on from there")
        else:
            # A model that does not load should not leave a folder in the way of the next call.
            with suppress(InputError):
                work.parts.remove()
        raise


class _Silent:
    """Progress that nobody looks at."""

    def read(self, queries: int) -> None:
        pass

    def begins(self, pairs: int, done: int) -> None:
        pass

    def ranked(self, pairs: int) -> None:
        pass
