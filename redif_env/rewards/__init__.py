"""Rewards: functions of a batched transition, one file per family, and their names for ``gym.make``. Read ``reward``
first."""
