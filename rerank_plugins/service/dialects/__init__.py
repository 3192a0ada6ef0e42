"""The dialects: what each server's clients send and expect, as rows of data and pure functions."""
