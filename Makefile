# tave: make help
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
WORKERS ?= 2
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile

# One thread setting for every target, so that timings and bits do not depend on the caller's shell.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup edit app test test-slow check format sheet notebooks bench bench-quality clean \
	kill fuzz disk together load

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.setup-done ## the environment in .venv, pinned by constraints.txt

$(VENV)/.setup-done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "error: Python %d.%d found, 3.11 to 3.13 needed: make setup PYTHON=python3.11" % v)'
	@if command -v uv >/dev/null; then uv venv -q --allow-existing --python $(PYTHON) $(VENV); \
	 else $(PYTHON) -m venv $(VENV) && $(PY) -m pip install -qq uv; fi
	@uv=$$(command -v uv || echo $(VENV)/bin/uv); $$uv pip install -q --compile-bytecode -p $(VENV) -c constraints.txt -e '.[dev,notebooks,app]'
	@touch $@

edit: setup ## set up and run the example edit: the bus becomes a red SUV
	@$(PY) -m tave.train video=bus_to_suv

app: setup ## set up and serve a page to edit on, at http://127.0.0.1:7860
	@$(PY) -m tave.app

test: setup ## set up and run the fast tests
	$(TESTS)

test-slow: setup ## the tests that run the drawn world's backbone or Chromium, and the notebooks with few steps
	$(TESTS) -m slow --durations=20
	TAVE_OVERRIDES='tuning.steps=2 inversion.steps=4' $(PY) -m pytest -q -n $(WORKERS) -m '' --nbmake --nbmake-timeout=900 notebooks

check: setup ## format, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: setup ## format and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

sheet: setup ## edit all named clips; draws docs/contact_sheet.png and writes docs/named_clips.md
	@$(PY) -m tave.train -m '+video=glob(*_to_*)' hydra.sweep.dir=outputs/named 'hydra.sweep.subdir=$${video.name}'
	@$(PY) -m tave.roadside.edit_sheet outputs/named docs

notebooks: setup ## run the notebooks and keep their outputs
	$(VENV)/bin/jupyter execute --inplace --kernel_name=python3 notebooks/*.ipynb

bench-quality: setup ## the small benchmark and its leaderboard, in outputs/benchmark_small
	@$(PY) -m tave.benchmark set=small workers=$(WORKERS); failed=$$?; \
	 $(PY) -m tave.eval.leaderboard runs='outputs/benchmark_small/**' out=outputs/benchmark_small && exit $$failed

bench: setup ## the full benchmark and its leaderboard, in outputs/benchmark: hours on two cores, resumable
	@$(PY) -m tave.benchmark workers=$(WORKERS); failed=$$?; \
	 $(PY) -m tave.eval.leaderboard runs='outputs/benchmark/**' out=outputs/benchmark && exit $$failed

# Each can be stopped and continues with the same command; TRY='seed=7 only=17' repeats one trial (docs/reliability.md).
kill: setup ## stop a small run at every change of a file and every step; the same command again must give the same
	@$(PY) -W ignore -m tests.reliability.kill workers=$(WORKERS) $(TRY)

fuzz: setup ## 2,000 seeded bad inputs: pictures, clips, options, prompts, folders
	@$(PY) -W ignore -m tests.reliability.fuzz workers=$(WORKERS) $(TRY)

disk: setup ## full disks, missing rights, vanished folders
	@$(PY) -W ignore -m tests.reliability.disk workers=$(WORKERS) $(TRY)

together: setup ## several processes on one cache, one run, one name, one sweep
	@$(PY) -W ignore -m tests.reliability.together workers=1 $(TRY)

load: setup ## 20 users of the app at once: nothing is lost, nothing leaks, memory comes back
	@$(PY) -W ignore -m tests.reliability.load $(TRY)

clean: ## remove the environment, builds and caches; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
