# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test test-times check clean

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
