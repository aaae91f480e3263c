"""Names of files and of choices that several rooms, or a command and its table, share."""

QUALITY_FLAGS = {"pen": 1, "blur": 2}
"""Faults of a patch by name; a patch's flags are the sum of their values."""
