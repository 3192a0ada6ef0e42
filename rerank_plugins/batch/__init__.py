"""A file of queries with their documents, reranked chunk by chunk into one file of rows."""
