"""Placeholder until the real one lands."""


class DefaultLanguageDetector:
    def __call__(self, text: str) -> str | None:
        return None
