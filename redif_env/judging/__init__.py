"""Evaluation of students: one evaluator for all samplers, the training-free baselines, and tables. Read ``evaluation``
first."""
