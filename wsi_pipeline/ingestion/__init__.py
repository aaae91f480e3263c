"""Taking in ready-cut labelled patches: one patient becomes one patch store, every patch in its place where its place is known."""
