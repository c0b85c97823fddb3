"""Results as a terminal shows them, and as the JSON line that programs read. Rich is used nowhere
else.
"""
