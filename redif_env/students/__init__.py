"""The student: a few-step sampler that needs no RL library, its exports, and supervised training of student networks.
Read ``student`` first."""
