"""The engine over HTTP, in the dialects of the servers that clients already know."""
