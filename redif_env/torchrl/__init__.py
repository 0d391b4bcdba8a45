"""TorchRL: the environment as an ``EnvBase``, tensors in and out. The only package here that imports the library."""

from redif_env.torchrl.env import ReDiFEnv

__all__ = ["ReDiFEnv"]
