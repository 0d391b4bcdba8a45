"""Train a few-step student with stock Stable-Baselines3 PPO, evaluate it, export it.

    python -m agents.ppo --teacher digits --num-steps 4 --seed 0 --out runs/digits-4
    python -m agents.ppo --resume --out runs/digits-4                               # after whatever stopped it
    python -m agents.ppo --action noise --out runs/digits-4-noise                   # the network itself is the student

The script itself is ``redif_env/sb3/training/ppo.py``, so that the wheel has it too (``redif train``). Read its
``main`` and ``train`` from top to bottom: environment, agent, callbacks, learning, export, report.
"""

from redif_env.sb3.training.ppo import PROGRAM, Args, build, main, train
from redif_env.sb3.training.recipes import settled
from redif_env.training.command import run

__all__ = ["PROGRAM", "Args", "build", "main", "train"]

if __name__ == "__main__":
    run(main, Args, settled)
