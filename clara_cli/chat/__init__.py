"""Language models behind OpenAI-compatible servers: one exchange, and a client that bears what
servers do. Knows nothing of what is asked, or why.
"""
