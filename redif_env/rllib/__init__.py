"""RLlib on Ray: environments of remote runners, the module that starts at the base solver, students of modules.

The only package here that imports the library. Read ``env`` first.
"""

from redif_env.rllib.callbacks import ReDiFCallback
from redif_env.rllib.env import make_env, shared_tensors
from redif_env.rllib.export import student_of_agent, student_of_module
from redif_env.rllib.module import CalmModule

__all__ = ["CalmModule", "ReDiFCallback", "make_env", "shared_tensors", "student_of_agent", "student_of_module"]
