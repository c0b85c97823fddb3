"""Arrays and rows in, ranked rows out: the exact scan, the HNSW index and BM25.

Knows nothing of models, passages or how a corpus is stored.
"""
