"""Any diffusers pipeline as a teacher: its own call makes every prediction, suspended wherever it would take a step.

Read ``wave`` first: one call of a pipeline, for a batch of episodes that go in lockstep.
"""
