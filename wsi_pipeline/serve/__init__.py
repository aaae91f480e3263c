"""Slides with their heatmaps in the browser, and the model behind a REST endpoint."""
