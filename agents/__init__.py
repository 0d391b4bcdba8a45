"""Programs that train a student, one file an algorithm: ``python -m agents.ppo``."""
