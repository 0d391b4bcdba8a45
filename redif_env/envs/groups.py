"""Siblings: the sub-environments of a group, which start from the same noise and differ by their actions alone."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def relative(values: NDArray[Any], group_size: int) -> NDArray[Any]:
    """``values`` ``(..., num_envs)`` less the mean of their group, which are ``group_size`` neighbours."""
    groups = values.reshape(*values.shape[:-1], -1, group_size)
    return (groups - groups.mean(axis=-1, keepdims=True)).reshape(values.shape)
