"""The border to Stable-Baselines3: the only part of the library that imports it."""

from redif_env.sb3.vec_env import ReDiFVecEnv, make_vec_env

__all__ = ["ReDiFVecEnv", "make_vec_env"]
