"""Downloads from the Hugging Face hub: the one border where its errors are translated."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_plugins.errors import ModelLoadError, first_line
from rerank_plugins.models.weights import PYTORCH, SETTINGS_FILE

if TYPE_CHECKING:
    from rerank_plugins.models.weights import ChooseFiles

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
SETTINGS = (SETTINGS_FILE, "tokenizer_config.json", "special_tokens_map.json")

PROMPT_SETTINGS = re.compile(
    r"chat_template\.jinja|modules\.json|[^/]*LogitScore/config\.json|sentence_bert_config\.json|"
    r"config_sentence_transformers\.json"
)
"""Files that say how a language model is asked, in the layout of sentence-transformers."""

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR})
"""What the system says where the cache is full, or not ours to write to."""

API_TIMEOUT_S = 10.0
"""Patience with the hub's listing of a model; a cached model is used where it does not answer."""


def fetch(
    model: str,
    *,
    choose: ChooseFiles,
    revision: str | None,
    local_files_only: bool,
    remote_code: bool,
) -> tuple[Path, str]:
    """Return the cached folder of a hub model, and its commit, downloading what is missing.

    Only the tokenizer, the settings, what *choose* takes and, for *remote_code*, the model's Python
    files are downloaded. Where the hub cannot be reached, a cached copy is used. The endpoint, the
    token and the cache folder are the hub library's own (``HF_ENDPOINT``, ``HF_TOKEN``,
    ``HF_HOME``).

    Raises:
        ModelLoadError: the model or revision is not there, is gated, or cannot be fetched.
    """
    if local_files_only:
        return _cached(model, revision, "only local files were asked for")
    from huggingface_hub import errors

    # The hub library has changed its HTTP library twice; the base class of that one's errors is
    # among the bases of the hub's own.
    failures: tuple[type[Exception], ...] = (
        OSError,
        errors.HFValidationError,
        *_bases(errors.HfHubHTTPError),
    )
    try:
        return _download(model, choose, revision, remote_code=remote_code)
    except failures as exc:
        refusal = _refusal(exc, revision)
        if refusal is not None:
            raise ModelLoadError(model, refusal) from exc
        cause = f"the hub could not be reached ({type(exc).__name__}: {first_line(exc)})"
        advice = None
        if isinstance(exc, OSError) and exc.errno in UNWRITABLE:
            cause = f"the hub's cache cannot be written to ({exc.strerror})"
            advice = "Make room there, or name another folder in HF_HOME"
        if isinstance(exc, errors.OfflineModeIsEnabled):
            return _cached(model, revision, "HF_HUB_OFFLINE is set", exc)
        found = _cached(model, revision, cause, exc, advice)
        logger.warning("%s: using the cached copy of %s", cause, model)
        return found


def _refusal(exc: Exception, revision: str | None) -> str | None:
    """Return why the hub will not give the model, or None where it could not be asked."""
    from huggingface_hub import errors

    if isinstance(exc, errors.GatedRepoError):
        return (
            "the model is gated: accept its terms on the hub, then log in with `hf auth login` "
            "or set HF_TOKEN"
        )
    if isinstance(exc, errors.RepositoryNotFoundError):
        return (
            "there is no such local folder, and no such model on the hub or it is private: check "
            "the spelling, or log in with `hf auth login` or HF_TOKEN"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return f"the model has no revision {revision!r} on the hub"
    if isinstance(exc, errors.HFValidationError):
        return _not_an_id(exc)
    if getattr(getattr(exc, "response", None), "status_code", None) in {401, 403}:
        return f"the hub refused access, check HF_TOKEN: {first_line(exc)}"
    return None


def _download(
    model: str, choose: ChooseFiles, revision: str | None, *, remote_code: bool
) -> tuple[Path, str]:
    from huggingface_hub import HfApi, hf_hub_download

    listing = HfApi().model_info(model, revision=revision, timeout=API_TIMEOUT_S)
    names = {sibling.rfilename for sibling in listing.siblings or ()}
    weights = choose(model, names)
    check_tokenizer(model, TOKENIZER in names)
    # Asking by branch first writes the branch's commit to the cache, where offline use finds it;
    # the rest is asked by that commit, so that a push in between cannot mix two versions.
    folder = Path(hf_hub_download(model, TOKENIZER, revision=revision)).parent
    commit = folder.name
    settings = [name for name in SETTINGS if name in names]
    settings += sorted(name for name in names if PROMPT_SETTINGS.fullmatch(name))
    code = [name for name in sorted(names) if name.endswith(".py")] if remote_code else []
    # What is chosen by comes last: where it is there, so is the rest.
    for name in (*settings, *code, *reversed(weights)):
        hf_hub_download(model, name, revision=commit)
    return folder, commit


def _cached(
    model: str,
    revision: str | None,
    cause: str,
    error: Exception | None = None,
    advice: str | None = None,
) -> tuple[Path, str]:
    """Return the folder of *model* in the hub's cache, without any request."""
    from huggingface_hub import errors, try_to_load_from_cache

    advice = advice or _advice(model, revision)
    try:
        found = try_to_load_from_cache(model, TOKENIZER, revision=revision)
    except errors.HFValidationError as exc:
        raise ModelLoadError(model, _not_an_id(exc)) from exc
    if not isinstance(found, str):
        at = "" if revision is None else f" at revision {revision!r}"
        reason = f"{cause}, and the cache does not hold it{at}. {advice}"
        raise ModelLoadError(model, reason) from error
    folder = Path(found).parent
    if not any(path.suffix in {".onnx", *PYTORCH} for path in folder.rglob("*")):
        reason = f"{cause}, and the cache holds no weights of it. {advice}"
        raise ModelLoadError(model, reason) from error
    return folder, folder.name


def _advice(model: str, revision: str | None) -> str:
    at = "" if revision is None else f" --revision {revision}"
    return f"Download it once where there is a network: hf download {model}{at}"


def check_tokenizer(model: str, there: object) -> None:
    """Raise `ModelLoadError` unless the model's tokenizer.json is *there*."""
    if not there:
        raise ModelLoadError(
            model,
            "there is no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )


def _not_an_id(exc: Exception) -> str:
    return f"there is no such local folder, and it is not a hub id: {exc}"


def _bases(error: type[Exception]) -> tuple[type[Exception], ...]:
    return tuple(base for base in error.__bases__ if issubclass(base, Exception))
