"""How good a ranking is: retrieval sets, a first stage to start from, and measures."""
