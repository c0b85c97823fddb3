"""Text in: the files that inputs name, the documents, questions and pairs in them, and passages.

Knows nothing of models, corpora or terminals.
"""
