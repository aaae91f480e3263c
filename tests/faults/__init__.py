"""Faults put in on purpose: what is promised of a run that is killed, or whose disk fails."""
