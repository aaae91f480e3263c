"""What the operator of a run wants to know: how fast it goes, what happened, how things stand, what the machine can do."""
