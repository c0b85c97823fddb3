"""The commands: one file each, one public `run(config, report)` that returns a record (`ask`: an
iterator of answers). They never import each other, never print, and know nothing of the terminal.
"""
