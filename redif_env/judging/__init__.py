"""How students are judged: one evaluator for every sampler, the training-free solvers beside it, and tables.
Read ``evaluation`` first."""
