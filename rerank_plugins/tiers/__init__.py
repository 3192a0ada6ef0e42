"""The second tier of the pair cache: what other processes have scored, on disk or in Redis."""
