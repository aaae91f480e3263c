"""What runs a model's network over batches of patches: one file per engine, and the table of them."""
