# Relative paths only, and no path in a variable that make would split: the checkout's own path
# may contain spaces. Programs are run as modules because a console script's first line cannot
# hold a path with a space.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# Extra options for the torch download, for instance another package index.
PIP_TORCH ?=

# Test processes at a time.
JOBS   ?= 2

VENV   := .venv
RUN    := $(VENV)/bin/python -m
READY  := $(VENV)/.ready

.PHONY: demo test slow lint clean
.DEFAULT_GOAL := test

# Written last, so an interrupted installation is repeated.
$(READY): setup.py pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check $(PIP_TORCH) "$(TORCH)"
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(RUN) recbole_tpad demo

test: $(READY)
	$(RUN) pytest -n $(JOBS)

slow: $(READY)
	$(RUN) pytest -m slow -n $(JOBS) --dist loadfile

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
