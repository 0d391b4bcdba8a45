"""The mathematics of sampling: noise schedules, prediction types, time grids, few-step solvers, and the borders to
diffusers' scheduler configs. Read ``types`` first: it states the tensor contract that the whole library keeps."""
