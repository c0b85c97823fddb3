"""The program at a terminal: options, the conversation, the server, and results as people and as
programs read them. Commands do the work; Typer is used nowhere else.
"""
