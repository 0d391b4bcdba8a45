"""The forms in which a student leaves: a diffusers pipeline, a scheduler, a list of steps, a traced program, a card.

Everything here is diffusers' own by base class, and needs neither Gymnasium nor an RL library.
"""

from redif_env.students.export.linear_solver import LinearSolverModel
from redif_env.students.export.pipeline import ReDiFPipeline
from redif_env.students.export.policy import PolicyModel
from redif_env.students.export.scheduler import ReDiFScheduler
from redif_env.students.export.start import StartModel

__all__ = ["LinearSolverModel", "PolicyModel", "ReDiFPipeline", "ReDiFScheduler", "StartModel"]
