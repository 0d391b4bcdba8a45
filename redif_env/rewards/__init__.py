"""Rewards: functions of a batched transition, one file a family, and the names by which ``gym.make`` knows them.
Read ``reward`` first."""
