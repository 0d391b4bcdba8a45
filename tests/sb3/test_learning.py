"""Learning, on a problem small enough for its optimum to be known."""

import numpy as np
import torch
from stable_baselines3 import PPO

from redif_env import GaussianMixtureTeacher
from redif_env.diffusion.grids import TimeGrid
from redif_env.diffusion.solvers import DDIM
from redif_env.envs.environments import ReDiFVectorEnv
from redif_env.mdp.actions import StepMap
from redif_env.sb3 import ReDiFVecEnv


def test_ppo_finds_the_one_best_step():
    """One Gaussian, two DDIM steps: the only choice is where to stop in between.

    The return of every constant choice is computed by brute force; PPO must reach the best of them, which is far
    better than the base solver's -1, and choose that place.
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
    agent.learn(20_000)
    judge = make(256)
    observation, _ = judge.reset(seed=1)
    action = agent.predict(observation, deterministic=True)[0]
    judge.step(action)
    learned = judge.step(np.zeros((256, 1), np.float32))[1].mean()
    assert learned > returns[best] - 0.05
    assert abs(action.mean() - choices[best]) < 0.15
