"""The documentation site: Sphinx with MyST and Furo, as Gymnasium's, so that docstrings are its reference pages.

``make docs`` builds it into ``docs/_build/html``; every warning is an error.
"""

import inspect
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

import redif_env
from redif_env.mdp.actions import ACTION_MAPS
from redif_env.mdp.observations import OBSERVATIONS, Observation
from redif_env.mdp.settings import MDPSettings, build_mdp

project = "ReDiF"
copyright = "the ReDiF authors, MIT licence"
version = release = redif_env.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "ReDiF"

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Cells are run when they have changed; their outputs are kept in docs/_build/.jupyter_cache.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = -1  # a busy machine may be slow
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings have single backticks around code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"

TEACHERS = ("digits", "gaussian-ring")
"""Whose spaces the environment's page lists: of images, and of other samples."""


def environment_page() -> str:
    """The docstring of ``ReDiFEnv``, which is Markdown in the form of Gymnasium's environment pages, roles aside."""
    text = inspect.getdoc(redif_env.ReDiFEnv) or ""
    return text.replace(":class:`", "{class}`").replace(":mod:`", "{mod}`")


def spaces_table() -> str:
    """Sizes of the action and observation spaces under each name, asked of the code."""
    lines = ["| | numbers for digits (1x8x8) | for gaussian-ring (2) |", "|---|---|---|"]
    for name in ACTION_MAPS:
        seen = "sample" if name == "noise" else "features"
        sizes = [build_mdp(MDPSettings(teacher=of, action=name, observation=seen)).action_size for of in TEACHERS]
        lines.append(f'| `action="{name}"` | {sizes[0]} | {sizes[1]} |')
    for name, observation in OBSERVATIONS.items():
        if isinstance(observation, Observation) and not observation.shows_condition:
            sizes = [build_mdp(MDPSettings(teacher=of, observation=name)).observation_size for of in TEACHERS]
            lines.append(f'| `observation="{name}"` | {sizes[0]} | {sizes[1]} |')
    return "\n".join(lines)


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is generated into the environment's page."""
    if page == "environment":
        text = source[0].replace("<!-- spaces -->", spaces_table())
        source[0] = text.replace("<!-- docstring -->", environment_page())


def prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings before napoleon reads them."""
    if obj is redif_env.ReDiFEnv:
        # A page of its own, in Markdown.
        lines[:] = [lines[0], "", "The page :doc:`environment` is this class's docstring.", ""]
    if what in ("attribute", "data", "property"):
        # Else napoleon takes what stands before the first colon for a type.
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", prepare, priority=400)
