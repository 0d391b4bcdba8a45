"""Students that are networks of their own: how they begin (cloning, pruning, low-rank adapters) and how gradients
refine them. Read ``cloning`` first."""
