"""Students with their own network: initialisation by cloning, pruning and low-rank adapters, and refinement by
gradient. Read ``cloning`` first."""
