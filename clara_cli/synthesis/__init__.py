"""Training data from the user's own documents, written by a language model and checked. Knows
records, errors and words; nothing of tensors, terminals or the corpus' files.
"""
