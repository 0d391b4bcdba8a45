"""Stable-Baselines3: the adapter, and what its stock agents need besides. The only place that imports it."""

from redif_env.sb3.checkpoints import Checkpointer
from redif_env.sb3.exploration import landing_gains, student_exploration
from redif_env.sb3.groups import GroupRelativeReturns
from redif_env.sb3.health import HealthCheck
from redif_env.sb3.levels import LevelNormalisedAdvantages
from redif_env.sb3.privileged import PrivilegedBaseline, check_privileged
from redif_env.sb3.student_policy import Reduction, StudentPolicy, clip_range_of, student_kwargs
from redif_env.sb3.trust import AnalyticKLStop
from redif_env.sb3.vec_env import ReDiFVecEnv, make_vec_env
from redif_env.training.runs import UnhealthyRunError

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
    "landing_gains",
    "make_vec_env",
    "student_exploration",
    "student_kwargs",
]
