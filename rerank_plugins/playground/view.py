"""A comparison as HTML: a string in which every text of the user is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from rerank_plugins.playground.comparing import agreement, places_after
from rerank_plugins.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rerank_plugins.events import RequestEvent
    from rerank_plugins.playground.asking import Answer, Comparison
    from rerank_plugins.results import RankedDocument, Ranking

SHOWN: Final = 100
"""Documents shown of each ranking: more than anybody reads, and still a page."""

_CLIP: Final = 320
_CLIP_BEFORE: Final = 90
_LOWEST: Final = -1e38
"""Logits below are those of blank documents."""

_STAGE_WORDS: Final = {
    "open": "opening the model",
    "clean": "cleaning texts",
    "look_up": "asking the cache",
    "encode": "making tokens",
    "queue": "waiting in the queue",
    "forward": "in the model",
    "finish": "sorting",
}

_LETTERS: Final = "AB"

_REASONS: Final = {
    "duplicate": "dropped as a duplicate",
    "max_candidates": "dropped by max_candidates",
}


def status_of(comparison: Comparison) -> str:
    """Say in one line what became of the question, as plain text."""
    count = _counted(len(comparison.documents), "document")
    done = [answer.model for answer in comparison.answers if answer.ranking is not None]
    failed = [answer.model for answer in comparison.answers if answer.ranking is None]
    parts = [f"{count} ranked by {' and '.join(done)}"] if done else []
    parts += [f"{' and '.join(failed)} failed"] if failed else []
    return "; ".join(parts) + "."


def page_of(comparison: Comparison) -> str:
    """Return the whole result: each model's order, how far they agree, the order before."""
    two = " rp-two" if len(comparison.answers) > 1 else ""
    parts = [_agreement(comparison), f'<div class="rp-answers{two}">']
    parts += [_answer(comparison, answer) for answer in comparison.answers]
    parts += [_before(comparison), "</div>"]
    return f'<div class="rp-result">{"".join(parts)}</div>'


def problem_of(message: str) -> str:
    """Return a complaint about what was asked; a message of several lines is a list of them."""
    lines = "<br>".join(map(escape, message.splitlines()))
    return f'<div class="rp-result"><p class="rp-problem" role="alert">{lines}</p></div>'


def movement(before: int, after: int) -> str:
    """Return the badge of a document that was at place *before* and is at *after*, both from 1."""
    moved = before - after
    if not moved:
        return (
            '<span class="rp-move" title="stayed"><span aria-hidden="true">=</span>'
            '<span class="rp-hidden">stayed</span></span>'
        )
    kind, arrow, word = ("rp-up", "↑", "up") if moved > 0 else ("rp-down", "↓", "down")
    told = f"{word} {_counted(abs(moved), 'place')}"
    return (
        f'<span class="rp-move {kind}" title="{told}"><span aria-hidden="true">{arrow}'
        f'{abs(moved)}</span><span class="rp-hidden">{told}</span></span>'
    )


def number(value: float) -> str:
    """Return a score or logit in few places; where they would hide it, its magnitude."""
    if value <= _LOWEST:
        return "lowest"
    plain = value == 0 or 5e-4 <= abs(value) < 1e5
    return f"{value:.3f}" if plain else f"{value:.1g}"


def _answer(comparison: Comparison, answer: Answer) -> str:
    head = f'<h2 class="rp-model">{_letter(comparison, answer)}{escape(answer.model)}</h2>'
    if answer.ranking is None:
        body = problem_of(answer.problem)
    else:
        ranking = answer.ranking
        kept = len(ranking) if comparison.top_n is None else min(comparison.top_n, len(ranking))
        shares = _shares(ranking)
        items = "".join(
            _item(comparison, ranking, rank, shares[rank - 1])
            for rank in range(1, min(kept, SHOWN) + 1)
        )
        body = f'{_facts(answer, ranking)}{_stages(answer.event)}<ol class="rp-list">{items}</ol>'
        body += _rest(kept, len(ranking))
    label = f"order by {answer.model}"
    return f'<section class="rp-answer" aria-label="{escape(label)}">{head}{body}</section>'


def _facts(answer: Answer, ranking: Ranking) -> str:
    """What is true of the whole ranking: who answered, in which language, from the cache."""
    facts = []
    if answer.event is not None:
        facts.append(f"<b>{_ms(answer.event.duration_s)}</b>")
        cached = f"{answer.event.cached} of {_counted(answer.event.pairs, 'pair')} from the cache"
        facts.append(cached)
    facts.append(_counted(ranking.tokens, "token"))
    if ranking.language is not None:
        facts.append(f"query in <b>{escape(ranking.language)}</b>")
    facts.append("score: logit" if ranking.activation == "logit" else "score from 0 to 1")
    line = " · ".join(f"<span>{fact}</span>" for fact in facts)
    notes = "".join(f'<p class="rp-note">{escape(note)}</p>' for note in _notes(answer, ranking))
    return f'<p class="rp-facts">{line}</p>{notes}'


def _notes(answer: Answer, ranking: Ranking) -> Iterator[str]:
    if answer.event is not None and answer.event.outcome == "fallback":
        yield f"It could not answer ({answer.event.error}); {ranking.scorer} answered in its place."
    elif ranking.scorer != answer.model and ranking.language is not None:
        yield f"Answered by {ranking.scorer}, because the query is in {ranking.language!r}."
    elif ranking.scorer != answer.model:
        yield f"Answered by {ranking.scorer}."
    if answer.untold:
        yield "It takes no instruction, and was not told yours."


def _stages(event: RequestEvent | None) -> str:
    """The time by stage: a bar for the eye, and its figures as a list."""
    if event is None:
        return ""
    seconds = {name: getattr(event.stages, name) for name in STAGES}
    total = sum(seconds.values()) or 1.0
    bar = "".join(
        f'<span class="rp-s-{name}" style="width:{100 * spent / total:.2f}%"></span>'
        for name, spent in seconds.items()
        if spent
    )
    rows = "".join(
        f'<li><i class="rp-s-{name}" aria-hidden="true"></i>{_STAGE_WORDS[name]} '
        f"<b>{_ms(spent)}</b></li>"
        for name, spent in seconds.items()
        if spent
    )
    return (
        f'<details class="rp-stages"><summary>Time by stage'
        f'<span class="rp-stage-bar" aria-hidden="true">{bar}</span></summary>'
        f"<ul>{rows}</ul></details>"
    )


def _item(comparison: Comparison, ranking: Ranking, rank: int, share: float) -> str:
    document = ranking[rank - 1]
    before = document.index + 1
    marks = "".join(
        f'<span class="rp-mark" title="{escape(why)}">{escape(mark)}</span>'
        for mark, why in _marks(comparison, ranking, document).items()
    )
    return (
        f'<li class="rp-item"><span class="rp-rank">{rank}</span><div class="rp-body">'
        f'<div class="rp-line">{movement(before, rank)}<span class="rp-was">was {before}</span>'
        f'<span class="rp-bar" aria-hidden="true"><span style="width:{100 * share:.1f}%"></span>'
        f'</span><span class="rp-score"><span class="rp-hidden">score </span>'
        f"{number(document.score)}</span></div>{_text(document.text)}"
        f'<div class="rp-marks">{marks}</div></div></li>'
    )


def _marks(comparison: Comparison, ranking: Ranking, document: RankedDocument) -> Mapping[str, str]:
    """Return what is to be said of a document, each mark with its explanation."""
    marks = {}
    if document.truncated:
        marks["cut"] = "longer than the model reads: the rest was not read"
    if document.window is not None:
        window = document.window
        marks[f"part {window.index + 1} of {window.count}"] = "the part that answered best"
    if document.duplicate_of is not None:
        marks[f"same as {document.duplicate_of + 1}"] = "it repeats that document of those given"
    language = comparison.languages[document.index] if comparison.languages else None
    if language is not None and language != ranking.language:
        marks[f"in {language}"] = "the language that was detected"
    if not document.text.strip():
        marks["blank"] = "nothing to score: blank documents come last"
    if document.cached:
        marks["cached"] = "scored before: the score came from the pair cache"
    return marks


def _text(text: str) -> str:
    """A document's text; of a long one the beginning, and the whole on demand."""
    if len(text) <= _CLIP:
        return f'<p class="rp-text" dir="auto">{escape(text)}</p>'
    return (
        f'<p class="rp-text" dir="auto">{escape(_clipped(text, _CLIP))}</p>'
        f'<details class="rp-whole"><summary>Whole text, {len(text):,} characters</summary>'
        f'<p class="rp-text" dir="auto">{escape(text)}</p></details>'
    )


def _clipped(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    # Between two words, where there are any.
    head, space, _ = text[:length].rpartition(" ")
    return f"{head if space and len(head) > length // 2 else text[:length]}…"


def _rest(kept: int, ranked: int) -> str:
    """Say what the list leaves out."""
    lines = []
    if kept > SHOWN:
        lines.append(f"The first {SHOWN} of {kept} are shown.")
    if ranked > kept:
        lines.append(f"{_counted(ranked - kept, 'document')} below top_n.")
    return "".join(f'<p class="rp-note">{line}</p>' for line in lines)


def _shares(ranking: Ranking) -> list[float]:
    """Return the length of each bar, from 0 to 1: logits fill it from the lowest to the highest."""
    scores = [document.score for document in ranking]
    if ranking.activation != "logit":
        return scores
    plain = [score for score in scores if score > _LOWEST] or [0.0]
    low, span = min(plain), max(plain) - min(plain)
    return [1.0 if not span else max(0.0, (score - low) / span) for score in scores]


def _agreement(comparison: Comparison) -> str:
    rankings = [answer.ranking for answer in comparison.answers if answer.ranking is not None]
    if len(rankings) < 2:
        return ""
    found = agreement(rankings[0], rankings[1])
    if found.tau is None:
        return ""
    return (
        '<p class="rp-agreement"><b>Rank agreement</b> '
        f"<span>Kendall τ <b>{found.tau:.2f}</b> over {_counted(found.documents, 'document')}"
        f"</span> <span>{found.top} of the first {found.depth} in common</span></p>"
    )


def _before(comparison: Comparison) -> str:
    """The order in which the documents were given, each with where it went."""
    went = [_went(answer.ranking) for answer in comparison.answers]
    rows = []
    for place, document in enumerate(comparison.documents[:SHOWN]):
        to = "".join(
            f"<span>{_letter(comparison, answer)}{where.get(place, 'nowhere')}</span>"
            for answer, where in zip(comparison.answers, went, strict=True)
        )
        beginning = escape(_clipped(" ".join(document.text.split()), _CLIP_BEFORE))
        rows.append(
            f'<li class="rp-item"><span class="rp-rank">{place + 1}</span><div class="rp-body">'
            f'<p class="rp-text" dir="auto">{beginning or "(blank)"}</p>'
            f'<p class="rp-went"><span aria-hidden="true">→</span>'
            f'<span class="rp-hidden">went to</span> {to}</p></div></li>'
        )
    return (
        '<section class="rp-answer rp-before" aria-label="order before">'
        '<h2 class="rp-model">Before</h2><p class="rp-facts">The order in which the documents were '
        f'given, and where each went.</p><ol class="rp-list">{"".join(rows)}</ol>'
        f"{_rest(len(comparison.documents), len(comparison.documents))}</section>"
    )


def _letter(comparison: Comparison, answer: Answer) -> str:
    """Return the letter of a model where there are two: the order before names them by it."""
    if len(comparison.answers) < 2:
        return ""
    return f'<span class="rp-letter">{_LETTERS[comparison.answers.index(answer)]}</span> '


def _went(ranking: Ranking | None) -> dict[int, str]:
    """Return in words where each document went, by its place in the order given."""
    if ranking is None:
        return {}
    went = {place: str(rank) for place, rank in places_after(ranking).items()}
    return went | {dropped.index: _REASONS[dropped.reason] for dropped in ranking.dropped}


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _ms(seconds: float) -> str:
    """Return a time in milliseconds, or in seconds where it is long."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.0001 else "under 0.1 ms"
