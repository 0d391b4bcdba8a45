"""What RLlib logs of ReDiF's episodes."""

from __future__ import annotations

from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from redif_env.envs.environments import terms_of


class ReDiFCallback(RLlibCallback):
    """Logs each reward term's sum over an episode, under ``("rewards", name)``, and the sum of all, ``("rewards",
    "total")``: with groups, RLlib's own return is relative and says nothing."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **keywords: Any) -> None:
        sums: dict[str, float] = {}
        for info in episode.get_infos():
            for name, value in terms_of(info).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        for name, value in {**sums, "total": sum(sums.values())}.items():
            metrics_logger.log_value(("rewards", name), value)
