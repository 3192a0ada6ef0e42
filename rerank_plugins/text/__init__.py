"""Text before it is scored: normalisation and language."""
