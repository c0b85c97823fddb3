"""From a question to an answer: passages found in a corpus and its index, what the generator is
given of them, how far they support the answer, and why. Knows nothing of terminals or training.
"""
