"""Families of language-model rerankers: how each is asked about a pair, and how it answers.

A family is a row. A new one is a row here, or a JSON file that a user names in ``family``.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict, StrictInt, TypeAdapter, ValidationError

from rerank_plugins.errors import ConfigError

QUERY, DOCUMENT, INSTRUCTION = "{query}", "{document}", "{instruction}"


@dataclass(frozen=True, slots=True)
class Family:
    """What a language model is asked about a pair, and which of its next tokens is the answer.

    The logit is that of the token ``yes`` at the end of the prompt, less that of ``no`` where there
    is one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str

    pieces: tuple[str, ...]
    """The prompt, in pieces that are tokenised each by itself, as the reference does it. One holds
    ``{query}``, and it or a later one ``{document}``; ``{instruction}`` may stand in any. Special
    tokens in the pieces themselves are parsed."""

    yes: str | StrictInt
    no: str | StrictInt | None = None
    """The answers, each the text of one token or its id."""

    instruction: str = ""
    """What stands for ``{instruction}`` where the user names none."""

    instruction_form: str = INSTRUCTION
    """How an instruction is written where there is one; where there is none, nothing is."""

    activation: Literal["sigmoid", "logit"] = "sigmoid"

    max_length: int | None = None
    """Longest prompt in tokens where the user names none, if not the model's own limit."""

    query_share: float = 0.75
    """The most that a query may take of the room for the texts. With 1, one that takes it all also
    takes what stands between it and the document, as where a reference cuts its whole string."""

    share_counts_before: bool = False
    """Whether that room counts the tokens before the query too."""

    bos: bool = False
    """Whether the prompt begins with what the tokenizer itself puts before a text."""

    model_types: tuple[str, ...] = ()
    """Values of ``model_type`` in config.json that are taken to be of this family."""

    def __post_init__(self) -> None:
        text = "".join(self.pieces)
        for place in (QUERY, DOCUMENT):
            if text.count(place) != 1:
                raise ValueError(f"pieces must hold {place} once, not {text.count(place)} times")
        if text.index(DOCUMENT) < text.index(QUERY):
            raise ValueError("pieces must hold {query} before {document}")
        if "" in (self.yes, self.no):
            raise ValueError("yes must be the text of a token, and no another, or left out")
        if self.activation not in ("sigmoid", "logit"):
            raise ValueError(f'activation must be "sigmoid" or "logit", not {self.activation!r}')
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be above 0, not {self.max_length}")
        if not 0 < self.query_share <= 1:
            raise ValueError(f"query_share must be above 0 and at most 1, not {self.query_share}")

    @property
    def takes_instruction(self) -> bool:
        """Whether the prompt has a place for an instruction."""
        return any(INSTRUCTION in piece for piece in self.pieces)

    def pieces_for(self, instruction: str | None) -> list[str]:
        """Return the pieces with what *instruction* makes of them; its own place stays.

        None leaves the family's own instruction, which is text of the template like the rest.
        """
        form = self.instruction_form
        if instruction is None:
            form = fill(form, instruction=self.instruction) if self.instruction else ""
        return [fill(piece, instruction=form) for piece in self.pieces]


def fill(template: str, **values: str) -> str:
    """Return *template* with ``{name}`` replaced by each value; other braces stay as they are."""
    return re.sub(
        r"\{(query|document|instruction)\}",
        lambda place: values.get(place[1], place[0]),
        template,
    )


FAMILIES: Final = (
    # https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, "Transformers Usage"
    Family(
        name="qwen3-reranker",
        pieces=(
            (
                "<|im_start|>system\nJudge whether the Document meets the requirements based on "
                "the Query and the Instruct provided. Note that the answer can only be "
                '"yes" or "no".<|im_end|>\n<|im_start|>user\n'
            ),
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        yes="yes",
        no="no",
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        max_length=8192,
        query_share=1,
        model_types=("qwen3",),
    ),
    # https://github.com/mixedbread-ai/mxbai-rerank, mxbai_rerank/mxbai_rerank_v2.py
    Family(
        name="mxbai-rerank-v2",
        pieces=(
            (
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
                "assistant.<|im_end|>\n<|im_start|>user\n"
            ),
            "{instruction}query: {query}",
            "\n",
            "document: {document}",
            "\n",
            (
                "You are a search relevance expert who evaluates how well documents match search "
                "queries. For each query-document pair, carefully analyze the semantic "
                "relationship between them, then provide your binary relevance judgment (0 for not "
                "relevant, 1 for relevant).\nRelevance:"
            ),
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        yes="1",
        no="0",
        instruction_form="instruction: {instruction}\n",
        max_length=8192,
        model_types=("qwen2",),
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma, "Usage", "Using Huggingface transformers"
    Family(
        name="bge-reranker-gemma",
        pieces=("<bos>", "A: {query}", "\n", "B: {document}", "\n", "{instruction}"),
        yes="Yes",
        instruction="Given a query A and a passage B, determine whether the passage contains an "
        "answer to the query by providing a prediction of either 'Yes' or 'No'.",
        # A single token's logit is no log-odds; the reference gives it as it is.
        activation="logit",
        max_length=1024,
        share_counts_before=True,
        model_types=("gemma",),
    ),
    # For a model of one's own: a plain question, for models whose answers are these words.
    Family(
        name="yes-no",
        pieces=(
            "{instruction}\n\nQuery: {query}\n\nDocument: {document}",
            "\n\nIs the document relevant to the query (yes or no)? Answer:",
        ),
        yes=" yes",
        no=" no",
        instruction="Judge whether the document answers the query.",
        max_length=8192,
        bos=True,
    ),
)


def family_named(name: str) -> Family:
    """Return the family that the setting ``family`` names: a row, or a JSON file of one.

    The file holds the fields of `Family`, or some of them beside ``"base"``, the name of the row
    that they change. ``template`` may stand for ``pieces``: one text, tokenised as a whole.

    Raises:
        ConfigError: there is no such row or file, or the file does not hold a family.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    if not name.endswith(".json"):
        raise ConfigError(
            f'family: expected "auto", "none", "chat-template", {_known()} or the path of a JSON '
            f"file, got {name!r}"
        )
    try:
        read = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as exc:
        raise ConfigError(f"family: {name!r} cannot be read: {exc}") from exc
    try:
        return _from_fields(read, Path(name).stem)
    except ValidationError as exc:
        raise ConfigError(f"family: {name!r} holds no family: {_first_problem(exc)}") from exc
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"family: {name!r} holds no family: {exc}") from exc


def family_of(model_type: object) -> Family | None:
    """Return the row for a ``model_type`` of config.json, or None where there is none."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def _from_fields(read: object, stem: str) -> Family:
    if not isinstance(read, dict):
        raise TypeError(f"it is {type(read).__name__}, not an object")
    if "model_types" in read:
        raise ValueError("model_types is for the rows of this package: name the file in family")
    if "template" in read and "pieces" in read:
        raise ValueError("template and pieces are two ways to say one thing: leave one out")
    given = {"name": stem, **read}
    if "template" in given:
        given["pieces"] = [given.pop("template")]
    if (base := given.pop("base", None)) is not None:
        row = next((row for row in FAMILIES if row.name == base), None)
        if row is None:
            raise ValueError(f"base is {base!r}, and must be one of {_known()}")
        given = {**asdict(row), "model_types": (), **given}
    return TypeAdapter(Family).validate_python(given)


def _known() -> str:
    return ", ".join(f'"{family.name}"' for family in FAMILIES)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "unexpected_keyword_argument":
        message = f"unknown; known are {', '.join(field.name for field in fields(Family))}"
    return f"{where}: {message}" if where else message
