"""Stable-Baselines3: the ``VecEnv`` adapter, the student policy and callbacks. The only room that imports the
library."""

from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.exploration import step_gains, student_exploration
from redif_env.sb3.groups import GroupRelativeReturns
from redif_env.sb3.health import HealthCheck, UnhealthyRunError
from redif_env.sb3.levels import LevelNormalisedAdvantages
from redif_env.sb3.privileged import PrivilegedBaseline, check_privileged
from redif_env.sb3.student_policy import Reduction, StudentPolicy, clip_range_of, student_kwargs
from redif_env.sb3.trust import AnalyticKLStop
from redif_env.sb3.vec_env import ReDiFVecEnv, make_vec_env

__all__ = [
    "AnalyticKLStop",
    "Checkpointer",
    "GroupRelativeReturns",
    "HealthCheck",
    "LevelNormalisedAdvantages",
    "PrivilegedBaseline",
    "ReDiFVecEnv",
    "Reduction",
    "StudentPolicy",
    "UnhealthyRunError",
    "check_privileged",
    "clip_range_of",
    "make_vec_env",
    "step_gains",
    "student_exploration",
    "student_kwargs",
]
