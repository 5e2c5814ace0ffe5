# Every target brings its own environment; a second run installs nothing.
VENV ?= .venv
WORKDIR ?= runs/digits
CONFIG ?= configs/digits.py
# The first Python of at least 3.11 that really starts.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# On CPU, XLA allocates a step's buffers anew: kept in the process instead of going back to the
# system after every step, and on huge pages, they cost less (docs/performance.md; glibc only,
# harmless elsewhere).
export MALLOC_MMAP_THRESHOLD_ = 33554432
export MALLOC_TRIM_THRESHOLD_ = 1073741824
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1

TABLES = effnetv2_jax.benchmark tables --table=all --device=local,tpu:v3:4x4

.PHONY: help train evaluate tables bench test test-slow faults lint types clean

help:
	@echo "make train      train EfficientNetV2-B0 on handwritten digits, into $(WORKDIR)"
	@echo "make evaluate   evaluate that run"
	@echo "make tables     the paper's tables, ours beside theirs, into docs/ (QUICK=1: what takes seconds)"
	@echo "make bench      our step, inference, input and start beside others', into docs/benchmarks.md"
	@echo "                (TORCH_PYTHON=...: an interpreter that has torch and timm)"
	@echo "make test       run the tests (COVERAGE=1: and print line coverage; test-slow: the slow ones)"
	@echo "make faults     kill the program 60 times, damage its files, and compare (20 minutes)"
	@echo "make lint       ruff; make types: mypy"

train: $(VENV)/installed
	$(VENV)/bin/python -m effnetv2_jax.train --config=$(CONFIG) --workdir=$(WORKDIR)

evaluate: $(VENV)/installed
	$(VENV)/bin/python -m effnetv2_jax.evaluate --workdir=$(WORKDIR)

# The quick rows are printed alone: docs/reproduction.md has them all.
tables: $(VENV)/installed
ifdef QUICK
	$(VENV)/bin/python -m $(TABLES) --quick
else
	$(VENV)/bin/python -m pip install --quiet --editable '.[train,tpu]'
	$(VENV)/bin/python -m $(TABLES) --batch_size=16 --row_seconds=30 --document=docs/reproduction.md
	$(VENV)/bin/python -m effnetv2_jax.benchmark plots
endif

bench: $(VENV)/installed
	$(VENV)/bin/python -m effnetv2_jax.benchmark all --document=docs/benchmarks.md \
	  $(if $(TORCH_PYTHON),--torch_python=$(TORCH_PYTHON))

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  $(if $(COVERAGE),--cov=effnetv2_jax --cov-report=term:skip-covered)

test-slow: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m slow

faults: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.faults --kills=60 --seed=0 --jobs=2

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(VENV)/installed-test
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; name one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[train]'
	@touch $@

$(VENV)/installed-test: setup.py pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) runs .cache
