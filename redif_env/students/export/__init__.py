"""The forms in which a student leaves: a diffusers pipeline, a scheduler, a list of steps, a traced program, a card.

Everything here is diffusers' own by base class, and needs neither Gymnasium nor an RL library.
"""

from redif_env.students.export.initial_map import InitialMapModel
from redif_env.students.export.linear_solver import LinearSolverModel
from redif_env.students.export.pipeline import ReDiFPipeline
from redif_env.students.export.policy import PolicyModel
from redif_env.students.export.redif_scheduler import ReDiFScheduler

__all__ = ["InitialMapModel", "LinearSolverModel", "PolicyModel", "ReDiFPipeline", "ReDiFScheduler"]
