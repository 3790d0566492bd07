# Everything from a fresh clone with only Python >= 3.11 and make.
PYTHON ?= python3
ENV ?= Hopper-v5
ARGS ?=
BIN := .venv/bin
# Those that take no whole updates.
UNIT := tests/acting tests/learner tests/policy tests/run tests/finite tests/test_config.py tests/test_files.py tests/test_imports.py \
	$(addprefix --ignore=tests/learner/test_,learner.py prepare.py radius.py rules.py staleness.py step_rule.py transaction.py) \
	--ignore=tests/run/metrics/test_declaration.py --ignore=tests/policy/test_policy.py --ignore=tests/acting/test_wide.py

.PHONY: install train test test-unit test-all lint format peers lock clean

install: .venv/installed

.venv/installed: requirements.lock setup.py
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python >= 3.11 is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

train: install
	$(BIN)/python -m trpo_tf.train --env=$(ENV) $(ARGS)

test: install
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# Of one room at a time, in under a minute.
test-unit: install
	$(BIN)/python -m pytest -m "not slow" $(UNIT) $(ARGS)

test-all: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# What benchmarks/ compare with; PyTorch and TensorFlow crash in one process, so it is an environment of its own.
peers: .venv-peers/installed

.venv-peers/installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		'sb3-contrib>=2.7' 'tianshou>=2.0' envpool 'gymnasium[mujoco,box2d]' absl-py
	touch $@

# Renews requirements.lock with the newest releases that setup.py allows.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check '.[atari,benchmarks,box2d,cma,dev,ray,serving,video]'
	.venv-lock/bin/python -m pip freeze --exclude trpo_tf | grep -v '@' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
