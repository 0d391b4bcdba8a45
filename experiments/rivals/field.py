"""The registry: who takes part in the comparison, by the names of its tables.

A new rival is a file beside this one, with a function from a :class:`~experiments.rivals.rival.Task` to a
:class:`~experiments.rivals.rival.Fitted`, and a line in ``FIELD``.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.rivals.amed import amed
from experiments.rivals.amed_plugin import amed_plugin
from experiments.rivals.consistency import consistency
from experiments.rivals.convolution import convolution_steps
from experiments.rivals.dyweight import dyweight
from experiments.rivals.gits import gits
from experiments.rivals.gradient import gradient_policy, gradient_table
from experiments.rivals.matching import matching
from experiments.rivals.optimal_steps import optimal_steps
from experiments.rivals.ours import cross_entropy, gauss_newton_table, redif_blind, redif_network, redif_ppo
from experiments.rivals.pas import pas
from experiments.rivals.progressive import progressive
from experiments.rivals.regression import regression
from experiments.rivals.rival import Rival
from experiments.rivals.training_free import TRAINING_FREE, allows, ddim, linear_steps


@dataclass(frozen=True)
class Entry:
    """How a rival is fitted.

    Args:
        rival: fits it.
        trained: it depends on chance and on the time that it is given; others are fitted once.
        network: it trains all weights of a network of its own, from the warm start.
        base: it is the base solver of those who are trained, as it is.
        paths: it is fitted to the teacher's trajectories of the reference set, which are given.
    """

    rival: Rival
    trained: bool = True
    network: bool = False
    base: bool = False
    paths: bool = False

    @property
    def needs_base(self) -> bool:
        """Whether its task must name a base solver."""
        return self.trained or self.base


FIELD: dict[str, Entry] = {
    "ddim, uniform time": Entry(ddim, trained=False),
    **{name: Entry(rival, trained=False) for name, rival in TRAINING_FREE.items()},
    "linear steps": Entry(linear_steps, trained=False, base=True),
    "convolution steps": Entry(convolution_steps, trained=False, paths=True),
    "gits": Entry(gits, trained=False),
    "optimal steps": Entry(optimal_steps, trained=False),
    "pas": Entry(pas, trained=False, paths=True),
    "cross-entropy": Entry(cross_entropy),
    "gauss-newton": Entry(gauss_newton_table),
    "gradient, table": Entry(gradient_table),
    "gradient, policy": Entry(gradient_policy),
    "dyweight": Entry(dyweight),
    "amed": Entry(amed, paths=True),
    "amed-plugin": Entry(amed_plugin, paths=True),
    "network, regression": Entry(regression, network=True),
    "network, progressive": Entry(progressive, network=True),
    "network, consistency": Entry(consistency, network=True),
    "network, matching": Entry(matching, network=True),
    "redif-ppo": Entry(redif_ppo),
    "redif-ppo, no state": Entry(redif_blind),
    "redif-ppo, network": Entry(redif_network, network=True),
}


def takes_part(method: str, predictions: int) -> bool:
    """Whether a method can spend exactly so many predictions."""
    return predictions % 2 == 0 if method in ("amed", "amed-plugin") else allows(method, predictions)
