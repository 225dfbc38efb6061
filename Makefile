# Everything sets itself up: `make run` and `make test` need nothing but Python 3.11 to 3.13 and a network or index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, as in many containers, each of the tests' many processes would compile ganmill anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup run test tests test-all lint types bench lock audit clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	xargs -n 24 -P 4 $(BIN)/python -m pip install --quiet --no-compile --no-deps < requirements.lock   # several at once: unpacking takes one core
# the lock is of Python 3.11 and torch's CPU build: what another Python (whenever) or build (CUDA's libraries) needs besides
	$(BIN)/python -m pip check > /dev/null || $(BIN)/python -m pip install --quiet --no-compile --requirement requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true   # fails on templates that are no Python
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: setup                ## the digits demo, end to end
	$(BIN)/ganmill demo

PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: setup               ## lint, types and every test of at most some seconds, side by side: the tests often wait
	$(MAKE) --jobs 3 lint types tests

test-all: setup lint types
	$(PYTEST)

tests: setup
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

bench: setup              ## the figures of the README; MNIST=FOLDER adds those that need its IDX files
	$(BIN)/python benchmarks/all.py $(MNIST)

lock:                     ## takes the newest versions that pyproject.toml allows
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet setuptools wheel "torch>=2.8" && .venv-lock/bin/python -m pip install --quiet -e '.[dev]'
	.venv-lock/bin/python -m pip freeze --all --exclude-editable | grep -viE '^(pip|ganmill)\b' | sed 's/+cpu//' > requirements.lock
	rm -rf .venv-lock

audit:                    ## known vulnerabilities of the locked versions, by PyPI's advisories; needs pypi.org
	rm -rf .venv-audit && $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict
	rm -rf .venv-audit

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
