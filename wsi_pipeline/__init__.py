"""Whole-slide pipeline: tile, train, infer and aggregate on one store."""
