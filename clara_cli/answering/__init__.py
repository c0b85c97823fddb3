"""An answer from passages already found: what the generator is given, how far the passages support
what it said, and why. Knows checkpoints and passages; nothing of corpora, searching or terminals.
"""
