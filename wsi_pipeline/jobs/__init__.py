"""The kinds of job that a run consists of: tile a slide, take in a patient's patches, infer a slide.

Jobs are small and picklable; what they need of a slide, a store or a model they open by path, in the process that runs them, and
keep open for the next block.
"""
