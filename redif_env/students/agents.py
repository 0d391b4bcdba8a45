"""Conversion of agents of RL libraries to students, through entry points.

Each entry point of the group ``redif_env.agents`` has the top-level package of an RL library as its name and a function
``(agent, env) -> Student`` as its object. This keeps RL libraries optional, and other packages can add theirs.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redif_env.students.student import Student

GROUP = "redif_env.agents"


def student_of_agent(agent: Any, env: Any | None) -> Student:
    """Make the student of an agent, with the entry point of the agent's library.

    Args:
        agent: the trained agent.
        env: its environment, or None if the agent has it.

    Raises:
        ValueError: if there is no entry point for the library, or its function refuses the agent.
    """
    libraries = {kind.__module__.split(".")[0] for kind in type(agent).__mro__}
    known = entry_points(group=GROUP)
    for point in known:
        if point.name in libraries:
            student: Student = point.load()(agent, env)
            return student
    names = ", ".join(sorted({point.name for point in known})) or "none: install redif-env again"
    raise ValueError(f"agent is a {type(agent).__name__}, of no supported library (supported: {names})")
