# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
RUN := .venv/bin/python

CORE := tests/diffusion tests/mdp tests/envs tests/storage tests/sb3/test_vec_env.py tests/sb3/test_learning.py \
	tests/students/test_export.py tests/students/test_student.py tests/test_cli.py

.PHONY: demo test test-times docs check test-oldest test-newest test-ray clean

demo: .venv/ready
	$(RUN) -m agents.ppo --teacher digits --num-steps 4 --solver linear --grid 'time^1.25@2.5' --initial-map linear --seed 0 \
		--baselines all --out runs/digits-4 --resume

test: .venv/ready
	$(RUN) -m pytest

# Where the suite spends its time: the slowest tests, then seconds by file.
test-times: .venv/ready
	$(RUN) -m pytest --durations 0 --durations-min 0.005 > test-times.log || (tail -n 40 test-times.log; exit 1)
	@grep -E '^[0-9.]+s (setup|call|teardown) ' test-times.log | head -n 40
	@awk '/^[0-9.]+s (setup|call|teardown) / { sub(/::.*/, "", $$3); seconds[$$3] += $$1 } \
		END { for (file in seconds) printf "%8.1f s  %s\n", seconds[file], file }' test-times.log | sort -rn
	@tail -n 1 test-times.log

# The site, in docs/_build/html. Notebooks are run when they have changed.
docs: .venv/docs-ready
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

check: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The core of the suite with the oldest versions that pyproject.toml admits (Python 3.11 has wheels of all), or the newest.
# What newer releases have deprecated, older ones still use.
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning $(CORE)

test-newest: .venv-newest/ready
	.venv-newest/bin/python -m pytest

# Other RL libraries and quantised networks, in an environment of their own: RLlib asks for one version of gymnasium.
test-ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest -n 0 tests/rllib tests/torchrl tests/agents/test_other_libraries.py \
		tests/teachers/test_as_the_user_has_it.py::test_quantised_networks

.venv-ray/ready: pyproject.toml constraints-ray.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-ray.txt \
		--editable '.[features,rllib,sb3,torchrl]' bitsandbytes pytest pytest-timeout pytest-xdist sb3-contrib skrl \
		tianshou torchao
	touch .venv-ray/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

.venv/docs-ready: .venv/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch .venv/docs-ready

.venv-oldest/ready: pyproject.toml constraints.txt tests/oldest.py
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-oldest/constraints.txt \
		--editable '.[dev]'
	touch .venv-oldest/ready

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv-newest/ready

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-ray build dist docs/_build *.egg-info
