"""Data of the lexical scorer: see `term_weights`."""
