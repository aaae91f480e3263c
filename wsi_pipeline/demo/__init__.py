"""The whole chain without any input: drawn slides whose tumour is known."""
