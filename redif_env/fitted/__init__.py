"""What least squares give before any training: the initial map that replaces the first steps, and the linear solver,
both fitted to trajectories of the teacher. Read ``regression`` first."""
