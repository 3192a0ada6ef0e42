"""A family read off the chat template of a checkpoint, and off what sentence-transformers saves.

Checkpoints that sentence-transformers knows for rerankers have a Jinja template of the roles
system (the instruction), query and document, and the ids of their answers in the settings of its
module LogitScore (``sentence_transformers/cross_encoder/modules/logit_score.py``).
"""

from __future__ import annotations

import json
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Literal

from rerank_plugins.errors import MissingExtraError, ModelLoadError
from rerank_plugins.models.families import DOCUMENT, INSTRUCTION, QUERY, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rerank_plugins.models.files import ModelFiles

TEMPLATE_FILE: Final = "chat_template.jinja"
MODULES_FILE: Final = "modules.json"

PLACES: Final = {"system": INSTRUCTION, "query": QUERY, "document": DOCUMENT}
"""The roles of the messages, and what their content becomes in a family's pieces."""


def has_pair_roles(files: ModelFiles) -> bool:
    """Whether the model has a chat template of queries and documents, and a score of its answers.

    sentence-transformers saves both; a template alone may be one for chats about documents.
    """
    template = _template(files)
    scored = any(_kind(module) == "LogitScore" for module in _modules(files))
    return scored and template is not None and all(r in template for r in ("query", "document"))


def is_embedding_model(files: ModelFiles) -> bool:
    """Whether sentence-transformers saved it with a pooling of its states, and no score."""
    kinds = [_kind(module) for module in _modules(files)]
    return "Pooling" in kinds and "LogitScore" not in kinds


def read_family(files: ModelFiles, base: Family | None) -> Family:
    """Return the family that a checkpoint's own chat template describes.

    Its answers are those of its LogitScore, or of *base*, the row of its model_type.

    Raises:
        ModelLoadError: it has no template of these roles, or names no answers.
        MissingExtraError: jinja2 is not installed.
    """
    template = _template(files)
    if template is None:
        raise ModelLoadError(
            files.name,
            f"it has no chat template: looked for {TEMPLATE_FILE}, and for chat_template in "
            "tokenizer_config.json; leave family out, or name another",
        )
    asked = _render(files, template, ("query", "document"))
    told = _render(files, template, ("system", "query", "document"))
    try:
        form, instruction, text = _instruction(asked, told)
    except ValueError as exc:
        raise ModelLoadError(files.name, f"its chat template cannot be used: {exc}") from exc
    for place in (QUERY, DOCUMENT):
        if text.count(place) != 1:
            raise ModelLoadError(
                files.name,
                f"its chat template shows a {place[1:-1]} {text.count(place)} times, and should "
                "once, from a message of that role; leave family out, or name another",
            )
    yes, no = _answers(files, base)
    saved = _settings(files, "config_sentence_transformers.json")
    prompts, named = saved.get("prompts"), saved.get("default_prompt_name")
    if INSTRUCTION in text and isinstance(prompts, dict) and isinstance(prompts.get(named), str):
        instruction = prompts[named]
    try:
        return Family(
            name="chat-template",
            pieces=(text,),
            yes=yes,
            no=no,
            instruction=instruction,
            instruction_form=form,
            activation=_activation(files, saved.get("activation_fn")),
            # sentence-transformers cuts the whole string, and puts its end back.
            query_share=1,
            max_length=base.max_length if base is not None else None,
        )
    except ValueError as exc:
        raise ModelLoadError(files.name, f"its chat template cannot be used: {exc}") from exc


def _template(files: ModelFiles) -> str | None:
    path = files.folder / TEMPLATE_FILE
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except ValueError as exc:
        raise ModelLoadError(files.name, f"{TEMPLATE_FILE} is no UTF-8 text: {exc}") from exc
    found = files.tokenizer_config.get("chat_template")
    return found if isinstance(found, str) else None


def _render(files: ModelFiles, template: str, roles: tuple[str, ...]) -> str:
    """Render messages of *roles* whose content is their places, as transformers renders one."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            package="jinja2", extra="torch", needed_for='family "chat-template"'
        ) from exc

    def refuse(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    sandbox.globals["raise_exception"] = refuse
    special = {
        name: value for name, value in files.tokenizer_config.items() if name.endswith("_token")
    }
    saved = _settings(files, "sentence_bert_config.json").get("processing_kwargs")
    options = saved.get("chat_template") if isinstance(saved, dict) else None
    options = options if isinstance(options, dict) else {}
    messages = [{"role": role, "content": PLACES[role]} for role in roles]
    try:
        return sandbox.from_string(template).render(
            **{"messages": messages, "add_generation_prompt": False, **special, **options}
        )
    # A template of strangers may do anything that an expression can.
    except Exception as exc:
        raise ModelLoadError(
            files.name, f"its chat template cannot be rendered: {type(exc).__name__}: {exc}"
        ) from exc


def _instruction(asked: str, told: str) -> tuple[str, str, str]:
    """Return how an instruction is written, the one that stands for none, and the whole text.

    *asked* was rendered without a message of the role system, *told* with one.
    """
    if INSTRUCTION not in told:
        return INSTRUCTION, "", told
    at = told.index(INSTRUCTION)
    # The texts may agree on some letters of the place's own name.
    start = min(_agreeing(asked, told), at)
    rest = asked[start:][::-1], told[start:][::-1]
    end = min(_agreeing(*rest), len(told) - at - len(INSTRUCTION))
    form, instead = told[start : len(told) - end], asked[start : len(asked) - end]
    if form != INSTRUCTION and instead:
        raise ValueError("it says other things where there is no system message")
    return form, instead, f"{told[:start]}{INSTRUCTION}{told[len(told) - end :]}"


def _activation(files: ModelFiles, saved: object) -> Literal["sigmoid", "logit"]:
    match str(saved).rpartition(".")[2].removesuffix("()"):
        case "None" | "Sigmoid":
            return "sigmoid"
        case "Identity":
            return "logit"
    raise ModelLoadError(
        files.name, f"its config_sentence_transformers.json names the activation {saved!r}"
    )


def _agreeing(one: str, other: str) -> int:
    """Return how many characters both texts begin with."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(one, other, strict=False)))


def _answers(files: ModelFiles, base: Family | None) -> tuple[str | int, str | int | None]:
    for module in _modules(files):
        if _kind(module) == "LogitScore":
            settings = _json(files, f"{module.get('path', '')}/config.json")
            if isinstance(settings, dict) and isinstance(settings.get("true_token_id"), int):
                no = settings.get("false_token_id")
                return settings["true_token_id"], no if isinstance(no, int) else None
    if base is None:
        raise ModelLoadError(
            files.name,
            "nothing says which tokens answer its chat template: there is no LogitScore in "
            f"{MODULES_FILE}. Name a family, or write one in a JSON file",
        )
    return base.yes, base.no


def _modules(files: ModelFiles) -> list[Mapping[str, Any]]:
    found = _json(files, MODULES_FILE)
    return [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []


def _kind(module: Mapping[str, Any]) -> str:
    """Return the name of a module's class, without where it lives."""
    return str(module.get("type", "")).rpartition(".")[2]


def _settings(files: ModelFiles, name: str) -> Mapping[str, Any]:
    found = _json(files, name)
    return found if isinstance(found, dict) else {}


def _json(files: ModelFiles, name: str) -> object:
    path = files.folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError) as exc:
        raise ModelLoadError(files.name, f"{name} cannot be read as JSON: {exc}") from exc
