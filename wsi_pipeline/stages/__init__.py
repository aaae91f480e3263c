"""The stages of a slide: tile, take in, infer, aggregate, relabel, export; each with the job that runs it.

Jobs are small and picklable; what they need of a slide, a store or a model they open by path, in
the process that runs them, and keep open for the next block.
"""
