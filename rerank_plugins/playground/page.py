"""The page itself: which inputs there are, and what happens when the button is pressed."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rerank_plugins.errors import InputError, MissingExtraError
from rerank_plugins.playground import example
from rerank_plugins.playground.asking import MOST_BYTES, Question
from rerank_plugins.playground.view import page_of, problem_of, status_of

try:
    import gradio as gr
except ModuleNotFoundError as exc:
    if exc.name != "gradio":
        raise
    raise MissingExtraError(
        package="gradio", extra="ui", needed_for="rerank_plugins.playground"
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_plugins.playground.asking import Playground

__all__ = ["CSS", "THEME", "Form", "answer", "build_page", "header"]

_log = logging.getLogger(__name__)

CSS: Final = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

# Fonts that a machine has: those of a theme may be fetched from elsewhere.
_FONTS: Final = ("Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "Arial", "sans-serif")
_MONO: Final = ("Consolas", "Menlo", "DejaVu Sans Mono", "monospace")

# Where the theme's own colours are too pale to be read by everybody, darker ones of its own.
THEME: Final = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=_MONO
).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    input_border_color="*neutral_400",
    input_border_color_dark="*neutral_500",
)

_SPLITS: Final = (("each paragraph", "paragraph"), ("each line", "line"))
_AS_SET: Final = ""
_DUPLICATES: Final = (("as set", _AS_SET), ("keep", "keep"), ("drop", "drop"))
_NONE: Final = ""

_EMPTY: Final = (
    '<div class="rp-result"><p class="rp-empty">Press <b>Rank</b>: where each document goes, '
    "how far it moved, its score and the time by stage are shown here.</p></div>"
)


def build_page(playground: Playground) -> gr.Blocks:
    """Return the page of an open playground; nothing is served yet, and nothing phones home."""
    page = gr.Blocks(title="Reranking playground", analytics_enabled=False)
    with page:
        gr.HTML(header(playground.elsewhere), apply_default_css=False, js_on_load=None)
        with gr.Row(elem_classes="rp-columns"):
            with gr.Column(elem_classes="rp-asked", min_width=280):
                query, *others, button = _inputs(playground)
            with gr.Column(elem_classes="rp-answered", min_width=280):
                # What changes in here is read out.
                status = gr.HTML(
                    elem_id="rp-status",
                    apply_default_css=False,
                    js_on_load="element.setAttribute('role', 'status')",
                )
                result = gr.HTML(
                    _EMPTY, elem_id="rp-result", apply_default_css=False, js_on_load=None
                )
        for asked in (button.click, query.submit):
            asked(
                Form(playground),
                inputs=[query, *others],
                js=_PACK,
                outputs=[status, result],
                api_name="rank",
                api_visibility="private",
                concurrency_id="rank",
                show_progress_on=[status],
                trigger_mode="once",
            ).then(None, js=_SHOW)
    page.queue(api_open=False, max_size=32, default_concurrency_limit=2)
    return page


_CHOOSER: Final = (
    '<div class="rp-chooser"><label for="rp-files">Text files, or JSON lines (.jsonl)</label>'
    '<input id="rp-files" type="file" multiple accept=".txt,.md,.jsonl,.ndjson,text/plain">'
    '<button type="button" onclick="document.getElementById(&quot;rp-files&quot;).value=&quot;'
    '&quot;">Choose none</button></div>'
)

# One byte more than may be sent tells that there are more.
_PACK: Final = f"""async (...values) => {{
    const pack = file => new Promise((resolve, reject) => {{
        const reader = new FileReader();
        reader.onerror = () => reject(reader.error);
        reader.onload = () => resolve({{
            name: file.name, data: String(reader.result).split(",")[1] ?? ""
        }});
        reader.readAsDataURL(file.slice(0, {MOST_BYTES} + 1));
    }});
    const chosen = [...(document.getElementById("rp-files")?.files ?? [])];
    let left = {MOST_BYTES} + 1;
    const some = chosen.filter(file => left > 0 && (left -= file.size, true));
    values[3] = chosen.length ? JSON.stringify(await Promise.all(some.map(pack))) : "";
    return values;
}}"""

# On a phone the result stands below what can be seen.
_SHOW: Final = """() => {
    const told = document.getElementById("rp-status");
    if (told.getBoundingClientRect().top > 0.7 * innerHeight) told.scrollIntoView();
}"""


def header(elsewhere: Sequence[str]) -> str:
    """Say what the page is, and to which servers *elsewhere* its texts are sent."""
    where = "stay on the machine that serves this page"
    if elsewhere:
        where = f"are sent to {escape(', '.join(elsewhere))}"
    return (
        '<header class="rp-header"><h1>Reranking playground</h1><p>See what a reranker does to the '
        f"order of your documents. Texts {where}.</p></header>"
    )


class Form:
    """Hears what stands on the page, in the order of its inputs, and answers with HTML."""

    # Gradio names a function's calls by it, and an object has none of its own.
    __name__ = "rank"

    def __init__(self, playground: Playground) -> None:
        self._playground = playground

    def __call__(
        self,
        query: str | None,
        text: str | None,
        split: str,
        files: str | None,
        first: str | None,
        second: str | None,
        top_n: str | None,
        max_candidates: str | None,
        duplicates: str | None,
        instruction: str | None,
    ) -> tuple[str, str]:
        """Return a line about the result, and the result."""
        try:
            question = Question(
                query=query or "",
                text=text or "",
                split="line" if split == "line" else "paragraph",
                files=_files(files),
                models=tuple(name for name in (first, second) if name),
                top_n=_whole(top_n, "top_n"),
                max_candidates=_whole(max_candidates, "max_candidates"),
                duplicates=duplicates or None,
                instruction=(instruction or "").strip() or None,
            )
        except InputError as exc:
            return _FAILED, problem_of(str(exc))
        return answer(self._playground, question)


_FAILED: Final = '<p class="rp-status">Nothing was ranked.</p>'


def answer(playground: Playground, question: Question) -> tuple[str, str]:
    """Return a line about the result of a question, and the result, both as HTML."""
    try:
        comparison = playground.ask(question)
    except InputError as exc:
        return _FAILED, problem_of(str(exc))
    # Gradio would print whatever it is, and its words may hold texts.
    except Exception as exc:  # noqa: BLE001
        where = "".join(traceback.format_tb(exc.__traceback__))
        _log.error("the playground failed with %s at\n%s", type(exc).__name__, where)
        return _FAILED, problem_of("Something went wrong here; the log of the server says what.")
    return f'<p class="rp-status">{escape(status_of(comparison))}</p>', page_of(comparison)


def _inputs(playground: Playground) -> tuple[Any, ...]:
    """Lay out what is asked: inputs in the order of `Form`'s arguments, then the button."""
    query = gr.Textbox(
        example.QUERY, label="Query", lines=1, max_lines=4, elem_id="rp-query", autofocus=True
    )
    text = gr.Textbox(
        example.DOCUMENTS, label="Documents", lines=9, max_lines=9, elem_id="rp-documents"
    )
    split = gr.Radio(
        list(_SPLITS), value="paragraph", label="A document is", elem_classes="rp-inline"
    )
    names = playground.names
    with gr.Row(elem_classes="rp-models"):
        # No lists that drop down: those of Gradio stay open behind the Tab key.
        first = gr.Radio(
            names, value=names[0], label="Model A", elem_id="rp-model-a", elem_classes="rp-inline"
        )
        second = gr.Radio(
            [("none", _NONE), *((name, name) for name in names[1:] + names[:1])],
            value=_NONE,
            label="Model B, beside it",
            visible=len(names) > 1,
            elem_id="rp-model-b",
            elem_classes="rp-inline",
        )
    button = gr.Button("Rank", variant="primary", elem_id="rp-rank")
    with gr.Accordion("Settings of this call", open=False):
        settings = _settings(playground)
    with gr.Accordion("Files in place of the text", open=False):
        gr.HTML(_CHOOSER, apply_default_css=False, js_on_load=None)
    # The browser reads the files: the server takes texts, and no path and no address of any.
    files = gr.Textbox("", visible=False)
    return query, text, split, files, first, second, *settings, button


def _settings(playground: Playground) -> list[gr.components.Component]:
    # Texts, as a field of numbers has no blank: it shows 0.
    with gr.Row():
        top_n = gr.Textbox(label="top_n", info="How many are kept; blank: all")
        most = gr.Textbox(
            label="max_candidates", info="How many the model sees; 0: all, blank: as set"
        )
    duplicates = gr.Radio(
        list(_DUPLICATES), value=_AS_SET, label="duplicates", elem_classes="rp-inline"
    )
    instruction = gr.Textbox(
        label="instruction",
        info="What to look for; blank: as set",
        visible=playground.takes_instruction,
    )
    return [top_n, most, duplicates, instruction]


def _whole(text: str | None, name: str) -> int | None:
    """Return a number as it was typed; blank is None."""
    typed = (text or "").strip()
    if not typed:
        return None
    if not (typed.isascii() and typed.isdigit() and len(typed) < 10):
        raise InputError(f"{name} must be a whole number, or blank, got {typed[:20]!r}")
    return int(typed)


def _files(text: str | None) -> tuple[tuple[str, bytes], ...]:
    """Return names and bytes of files, as the page's script packs them."""
    try:
        packed = json.loads(text or "[]")
        return tuple(
            # A name is shown, and tells the format by its end; nothing is opened by it.
            (str(each["name"])[-100:], base64.b64decode(each["data"], validate=True))
            for each in packed
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError("the files did not come whole; choose them again") from None
