# On a machine with Python 3.11 or 3.12, git and make: `make repro` and `make test` are all there is
# to type. PYTHON names the interpreter to build .venv with.
PYTHON ?= $(firstword $(foreach v,3.11 3.12,$(shell python$(v) -c 'print("python$(v)")' 2>/dev/null)) python3)
BIN := .venv/bin
UV_VERSION := $(shell sed -n 's/^uv==//p' constraints.txt)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install check test test-slow repro up unstick benchmarks

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

check: install
	ruff format --check .
	ruff check .
	mypy

# Two test files at a time, one thread each: threads that wait for each other are slower than one.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -p no:benchmark --numprocesses 2 --dist loadfile

test: install
	$(PYTEST)

test-slow: install
	$(PYTEST) -m 'slow and not gpu'

repro: install
	dvc repro

up: install
	python -m flows.up

unstick: install
	python -m flows.unstick

benchmarks: install
	python -m pytest benchmarks --benchmark-group-by=group --benchmark-columns=min,median,rounds
