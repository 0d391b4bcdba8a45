"""The loop of few-step sampling: the decision process and a policy."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from redif_env.diffusion.types import State
from redif_env.mdp.process import DenoisingMDP


def trajectory(
    mdp: DenoisingMDP,
    policy: Callable[[Any], Tensor],
    noise: Tensor,
    price: Tensor | None = None,
    condition: Tensor | None = None,
) -> Generator[State, State | None]:
    """Yields the state after each step from ``noise`` ``(B, *S)``; the last holds the clean samples, not yet clipped.

    A caller may send a state to replace the one it was given. Samples that are finished early cost no more calls.

    Args:
        mdp: the decision process.
        policy: observations ``(B, F)`` on the host, or the dict of ``Sample``, to actions ``(B, A)``.
        noise: standard normal.
        price: ``(B,)`` of a network call, where the policy knows prices.
        condition: rows ``(B,)`` of the teacher's conditions; the first if not given.
    """
    state = mdp.initial(noise, price, condition)
    unfinished = state.steps_left > 0
    while bool(unfinished.any()):
        state = mdp.predict(state, unfinished)
        action = policy(mdp.observe(state))
        predicted = mdp.with_action_prediction(state, action)
        stepped = mdp.advance(predicted, mdp.decode(predicted, action))
        state = state.merge(unfinished, stepped)
        unfinished = state.steps_left > 0
        changed = yield state
        state = state if changed is None else changed
