"""Fixtures for tests of pipelines."""

import pytest


@pytest.fixture
def quiet():
    """diffusers and transformers speak of what tiny components lack."""
    import diffusers
    import transformers

    before = diffusers.logging.get_verbosity(), transformers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    yield
    diffusers.logging.set_verbosity(before[0])
    transformers.logging.set_verbosity(before[1])
