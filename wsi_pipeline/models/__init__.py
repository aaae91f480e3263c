"""Networks, and everything needed to use a trained one."""
