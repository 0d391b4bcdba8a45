"""Students that are networks of their own: how they are initialised (cloning, pruning, low-rank adapters) and refined by
gradient. Read ``cloning`` first."""
