# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test check clean

demo: .venv/ready
	$(RUN) -m agents.ppo --teacher digits --num-steps 4 --solver linear --grid 'time^1.25@2.5' --initial-map linear --seed 0 \
		--baselines all --out runs/digits-4 --resume

test: .venv/ready
	$(RUN) -m pytest

check: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

clean:
	rm -rf .venv build *.egg-info
