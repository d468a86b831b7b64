"""Whether a run fits: what it needs, what is chosen to make it fit, what this machine can do."""
