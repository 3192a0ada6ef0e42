"""A page to look at what reranking does: pure parts, and their wiring to Gradio and a server."""
