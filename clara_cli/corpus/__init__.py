"""Corpora: compressed passages in shards, written, read, repaired, and the cache of some of them.

Knows nothing of models, terminals or search structures.
"""
