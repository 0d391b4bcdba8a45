"""Stable-Baselines3: the ``VecEnv`` adapter, the policy of students that are networks, callbacks, and training.

The only package here that imports the library. Read ``vec_env`` first.
"""

from redif_env.sb3.antithetic_policy import AntitheticPolicy
from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.exploration import step_gains, student_exploration
from redif_env.sb3.groups import GroupRelativeReturns
from redif_env.sb3.health import HealthCheck
from redif_env.sb3.levels import LevelNormalisedAdvantages
from redif_env.sb3.student_policy import Reduction, StudentPolicy, clip_range_of, student_kwargs
from redif_env.sb3.vec_env import ReDiFVecEnv, make_vec_env
from redif_env.training.runs import UnhealthyRunError

__all__ = [
    "AntitheticPolicy",
    "Checkpointer",
    "GroupRelativeReturns",
    "HealthCheck",
    "LevelNormalisedAdvantages",
    "ReDiFVecEnv",
    "Reduction",
    "StudentPolicy",
    "UnhealthyRunError",
    "clip_range_of",
    "make_vec_env",
    "step_gains",
    "student_exploration",
    "student_kwargs",
]
