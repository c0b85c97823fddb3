"""Artefacts on disk: written whole or not at all, locked, appended to, and read with care.

The only package that writes or deletes them. A link inside an artefact is never followed when
something is written or deleted; the artefact itself may be one. Knows nothing of what they mean.
"""
