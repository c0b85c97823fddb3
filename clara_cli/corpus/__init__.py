"""Text in, shards out: reading documents, splitting them, storing compressed passages.

Knows nothing of models, terminals or search structures.
"""
