"""Measuring: datasets, metrics, the systems compared, controls, and what is written of it.

May use core, corpus and search; knows no terminal and no command.
"""
