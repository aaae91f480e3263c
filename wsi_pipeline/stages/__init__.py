"""The stages of a slide, each with its job: tile, ingest, infer, aggregate, relabel, export.

Jobs are small and picklable; what they need of a slide, a store or a model they open by path, in
the process that runs them, and keep open for the next block.
"""
