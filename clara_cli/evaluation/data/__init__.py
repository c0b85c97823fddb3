"""Evaluation questions in the forms their authors publish them, and figures that papers report."""
