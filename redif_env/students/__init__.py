"""The student, which is what is shipped: a few-step sampler without an RL library, the forms in which it is exported,
and the training by gradient of students that are networks. Read ``student`` first."""
