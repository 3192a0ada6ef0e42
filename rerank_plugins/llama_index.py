"""The LlamaIndex door: a node postprocessor."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rerank_plugins.config import RerankConfig
from rerank_plugins.doors import (
    RELEVANCE_SCORE,
    RERANKED_BY,
    RETRIEVAL_SCORE,
    Door,
    check_items,
    scored_metadata,
)
from rerank_plugins.errors import ConfigError, MissingExtraError
from rerank_plugins.requests import DeferredTexts

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
    from llama_index_instrumentation import get_dispatcher
except ModuleNotFoundError as exc:
    # A package that is missing inside LlamaIndex is LlamaIndex's to report.
    if exc.name not in {"llama_index", "llama_index.core"}:
        raise
    raise MissingExtraError(
        package="llama_index.core", extra="llama-index", needed_for="rerank_plugins.llama_index"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rerank_plugins.results import Ranking

__all__ = ["RerankPostprocessor"]

_OURS = (RELEVANCE_SCORE, RETRIEVAL_SCORE, RERANKED_BY)

dispatcher = get_dispatcher(__name__)


class RerankPostprocessor(Door, BaseNodePostprocessor):
    """Orders retrieved nodes by how well they answer the query, and keeps the best.

    Takes ``model=`` with the settings of `Reranker` by their names, or ``reranker=``, one that
    stands. Nodes come back as copies, with the score as ``.score`` and in the metadata beside
    ``retrieval_score`` (the one that they came with, unless that key was there) and
    ``reranked_by``; prompts and embeddings never see these three, and neither does a second
    rerank. What is nested in the metadata is shared with the nodes given. Nodes without text rank
    last. The async path blocks no thread while the model works.

    Raises:
        ValidationError (a ValueError): a setting is unknown, out of range or at odds with another.
    """

    # A misspelt setting is an error, here as in `Reranker`.
    model_config = ConfigDict(extra="forbid")

    top_n: int | None = Field(
        default=5, ge=1, strict=True, description="nodes that are kept at most; None keeps all"
    )
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="which metadata is scored with a node's text"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_own_dump(cls, data: Any) -> Any:  # noqa: ANN401  whatever the caller passed
        # BaseComponent writes the class name into every dump, but only `from_dict` takes it out.
        if isinstance(data, dict) and data.get("class_name") == cls.class_name():
            return {name: value for name, value in data.items() if name != "class_name"}
        return data

    @classmethod
    def class_name(cls) -> str:
        """Return the name that stands for this class in LlamaIndex's dumps."""
        return "RerankPostprocessor"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  those of `model_dump`
        """Return the settings for `from_dict`; with ``reranker=`` they are that reranker's.

        Raises:
            ConfigError: ``reranker=`` is over a `Scorer` of yours, which no name stands for. Leave
                it out by ``exclude={"model"}``, and hand the reranker to `from_dict`.
        """
        data = super().to_dict(**kwargs)
        if self.reranker is None:
            return data
        theirs = self._open().config
        if self.reranker.scorer_given and "model" in data:
            raise ConfigError(
                f"model: the scorer {theirs.model!r} is an object of yours, which a dump cannot "
                'hold; leave it out with exclude={"model"}, and give the reranker to from_dict or '
                "from_json(..., reranker=...)"
            )
        data.update((k, getattr(theirs, k)) for k in RerankConfig.model_fields if k in data)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:  # noqa: ANN401  any field
        """Make a postprocessor of a dump; fields by name replace what is in it.

        ``reranker=``, one that stands, replaces all settings that a reranker has.
        """
        if kwargs.get("reranker") is not None:
            data = {k: v for k, v in data.items() if k not in RerankConfig.model_fields}
        return super().from_dict(data, **kwargs)

    def to_json(self, **kwargs: Any) -> str:  # noqa: ANN401  those of `model_dump`
        """Return the settings as JSON, for `from_json`.

        Raises:
            ConfigError: a setting is a function, or holds observers. Leave it out by
                ``exclude={name}``, and hand it to `from_json` by its name. A `Scorer` of yours: as
                for `to_dict`.
        """
        data = self.to_dict(**kwargs)
        for name, value in data.items():
            if callable(value) or (name == "observers" and value):
                # An observer's own repr may hold a secret.
                kind = "an observer" if name == "observers" else f"a function, {value!r},"
                raise ConfigError(
                    f"{name}: {kind} cannot be written as JSON; leave it out "
                    f"with to_json(exclude={{{name!r}}}), and give it to from_json(..., {name}=...)"
                )
        return json.dumps(data)

    def __getstate__(self) -> dict[Any, Any]:
        # BaseComponent drops what cannot be pickled, from this very object too; what came out of
        # the pickle would then score by other settings. Here pickle says what it cannot do.
        state = BaseModel.__getstate__(self)
        fields = {k: v for k, v in self.__dict__.items() if k != "callback_manager"}
        return {**state, "__dict__": fields, "__pydantic_private__": {"_opened": None}}

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _required(query_bundle)
        nodes = check_items(nodes, NodeWithScore, "nodes")
        if not nodes:
            return []
        with self._announced(nodes, query) as kept:
            ranking = self._rank(query.query_str, self._texts(nodes), self.top_n)
            kept.extend(_ranked(nodes, ranking))
        return kept

    # LlamaIndex wraps the methods that its base leaves abstract, and this is none of them.
    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _required(query_bundle)
        nodes = check_items(nodes, NodeWithScore, "nodes")
        if not nodes:
            return []
        with self._announced(nodes, query) as kept:
            ranking = await self._arank(query.query_str, self._texts(nodes), self.top_n)
            kept.extend(_ranked(nodes, ranking))
        return kept

    def _texts(self, nodes: Sequence[NodeWithScore]) -> Sequence[str]:
        return DeferredTexts(nodes, lambda each: _scored_text(each.node, self.metadata_mode))

    @contextmanager
    def _announced(
        self, nodes: list[NodeWithScore], query: QueryBundle
    ) -> Iterator[list[NodeWithScore]]:
        """Announce a rerank in both event systems, and its end whatever happens.

        Yields the list that is to be filled with the nodes that are kept.
        """
        kept: list[NodeWithScore] = []
        model = self._open().config.model
        start = ReRankStartEvent(
            query=query,
            nodes=nodes,
            top_n=len(nodes) if self.top_n is None else self.top_n,
            model_name=model,
        )
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: start.top_n,
        }
        dispatcher.event(start)
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield kept
                event.on_end(payload={EventPayload.NODES: list(kept)})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=kept))


def _required(query_bundle: QueryBundle | None) -> QueryBundle:
    if query_bundle is None:
        raise ValueError("Missing query bundle in extra info.")
    return query_bundle


def _scored_text(node: BaseNode, mode: MetadataMode) -> str:
    """Return what is scored of *node*: without the keys of an earlier rerank in any mode."""
    if any(key in node.metadata for key in _OURS):
        metadata = {key: value for key, value in node.metadata.items() if key not in _OURS}
        node = node.model_copy(update={"metadata": metadata})
    return node.get_content(metadata_mode=mode)


def _ranked(nodes: Sequence[NodeWithScore], ranking: Ranking) -> Iterator[NodeWithScore]:
    for document in ranking:
        came = nodes[document.index]
        metadata = scored_metadata(
            came.node.metadata,
            came_with=None if came.score is None else float(came.score),
            score=document.score,
            scorer=ranking.scorer,
        )
        yield NodeWithScore(node=_copied(came.node, metadata), score=document.score)


def _copied(node: BaseNode, metadata: dict[str, Any]) -> BaseNode:
    """Return a copy of *node* with *metadata*, our keys in it out of sight of prompts.

    What others assign to or add to in place is copied, one level deep; the rest is shared.
    """
    ours = [key for key in _OURS if key in metadata]
    return node.model_copy(
        update={
            "metadata": metadata,
            "relationships": dict(node.relationships),
            "excluded_embed_metadata_keys": _joined(node.excluded_embed_metadata_keys, ours),
            "excluded_llm_metadata_keys": _joined(node.excluded_llm_metadata_keys, ours),
        }
    )


def _joined(keys: Iterable[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*keys, *more]))
