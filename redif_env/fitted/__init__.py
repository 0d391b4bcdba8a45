"""Least-squares fits to teacher trajectories, made before RL training: the initial map that replaces the first steps,
and the least-squares multistep solver. Read ``regression`` first."""
