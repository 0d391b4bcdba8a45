"""Learning on a problem with a known optimum."""

import numpy as np
import torch
from stable_baselines3 import PPO

from redif_env import GaussianMixtureTeacher
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.mdp.actions import StepMap
from redif_env.sb3 import ReDiFVecEnv


def test_ppo_learns_the_optimal_step():
    """For a Gaussian and two DDIM steps, the only choice is the level between them.

    The returns of constant choices are computed by brute force. PPO must choose the best, whose return is far above the
    base solver's -1.
    """
    teacher = GaussianMixtureTeacher(torch.zeros(1, 1), 0.2)

    def make(num_envs):
        return ReDiFVectorEnv(
            num_envs,
            teacher=teacher,
            num_steps=2,
            action=StepMap(max_shift=3.0),
            solver=DDIM(),
            grid=TimeGrid(),
            reference_size=256,
            autoreset_mode="SameStep",
        )

    choices, env = np.linspace(-1, 1, 81, dtype=np.float32), make(256)
    env.reset(seed=0)
    returns = []
    for choice in choices:
        env.step(np.full((256, 1), choice))
        returns.append(env.step(np.zeros((256, 1), np.float32))[1].mean())
    best = int(np.argmax(returns))
    assert -0.9 < choices[best] < 0.9
    assert returns[best] > -0.7

    agent = PPO(
        "MlpPolicy",
        ReDiFVecEnv(make(64)),
        n_steps=8,
        batch_size=256,
        n_epochs=8,
        learning_rate=3e-3,
        gamma=1.0,
        gae_lambda=1.0,
        policy_kwargs={"log_std_init": -1.0},
        seed=0,
    )
    agent.learn(10_000)  # there after 5,000 from the seeds 0, 1 and 2
    held_out = make(256)
    observation, _ = held_out.reset(seed=1)
    action = agent.predict(observation, deterministic=True)[0]
    held_out.step(action)
    learned = held_out.step(np.zeros((256, 1), np.float32))[1].mean()
    assert learned > returns[best] - 0.05
    assert abs(action.mean() - choices[best]) < 0.15
