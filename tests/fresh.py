"""Our own modules forgotten for a while, as in a fresh interpreter; other libraries take ten seconds, and stay."""

import sys
from contextlib import contextmanager
from unittest.mock import patch

import gymnasium


@contextmanager
def ours_forgotten():
    """Within, our package is imported anew; afterwards all is as it was."""
    with patch.dict(sys.modules), patch.dict(gymnasium.registry):
        for name in [name for name in sys.modules if name.split(".")[0] == "redif_env"]:
            del sys.modules[name]
        for name in [name for name in gymnasium.registry if name.startswith("ReDiF")]:
            del gymnasium.registry[name]
        yield
