"""Training with Stable-Baselines3's PPO: ``redif train``, in a checkout also ``python -m agents.ppo``. Read ``ppo``."""
