"""Several processes for one command: started, brought together, and a backbone cut up among them.
Knows no command's work.
"""
