"""Runs over many slides: one outcome per slide in any case, and the tables that people read."""
