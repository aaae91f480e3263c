"""Products on disk: complete, or not there."""
