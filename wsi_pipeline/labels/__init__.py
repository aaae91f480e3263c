"""Where labels come from when they do not come with the patches."""
