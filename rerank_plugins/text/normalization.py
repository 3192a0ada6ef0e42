"""Placeholder until the real one lands."""


def normalize_text(text: str) -> str:
    return " ".join(text.split())
