"""Errors, geometry, slides and patches as data, recipes, JSON, CSV and limits; needs numpy only."""
