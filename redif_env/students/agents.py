"""Agents of RL libraries: found by the entry points that say how each library's agents become students.

A library of agents is known by an entry point of the group ``redif_env.agents``: its name is the library's top-level
package, its object a function ``(agent, env) -> Student``. So the student needs none of them, and others can be added.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redif_env.students.student import Student

GROUP = "redif_env.agents"


def student_of_agent(agent: Any, env: Any | None) -> Student:
    """The student of an agent trained with any library that has an entry point.

    Raises:
        ValueError: if it has none, or the library's function refuses the agent.
    """
    libraries = {kind.__module__.split(".")[0] for kind in type(agent).__mro__}
    known = entry_points(group=GROUP)
    for point in known:
        if point.name in libraries:
            student: Student = point.load()(agent, env)
            return student
    names = ", ".join(sorted({point.name for point in known})) or "none: install redif-env again"
    raise ValueError(f"agent is a {type(agent).__name__}, of none of the libraries that are known ({names})")
