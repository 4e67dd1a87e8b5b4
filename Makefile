# darkroom from a clean checkout: make run, make test. Needs Python 3.11 to 3.13 and a package registry.

SPOOL ?= spool
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile --constraint constraints.txt
# pip would compile all 14,000 files, one after the other; these are hardly imported, and compiled if they are.
UNCOMPILED := /(tests|testing|networkx|scipy|sklearn|sympy)/|transformers/models/|diffusers/pipelines/
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib || true
TORCH := $(shell grep '^torch==' constraints.txt)
# One more than cores, since tests also wait.
TESTERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test speed lint soak soak-engine seedling seedling-eval seedling-lora seedling-fewstep clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
	@echo '  SPOOL=folder          where `make run` keeps its folders (default: spool)'
	@echo '  PYTHON=python3.12     which Python makes .venv (default: the first that fits)'

run: $(VENV)/.installed ## turn inbox.example/ into pictures with the bundled model
	@mkdir -p '$(SPOOL)/inbox'
	@cp inbox.example/*.json '$(SPOOL)/inbox/'
	@$(BIN)/darkroom run --once --config config.toml --root '$(SPOOL)' --sheet '$(SPOOL)/contact-sheet.png'

test: $(VENV)/.installed-dev ## the whole test suite
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TESTERS) --maxprocesses 4 --dist worksteal

speed: $(VENV)/.installed ## ratios of speed to references, none under its floor (about two minutes)
	@$(BIN)/python tools/speed_guard.py

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(VENV)/.installed ## 100,000 jobs while the daemon is killed again and again (about a quarter of an hour)
	$(BIN)/python tools/soak.py

soak-engine: $(VENV)/.installed ## 1,000 jobs with the bundled model: memory of daemon and engine must stay flat (minutes)
	$(BIN)/python tools/soak_engine.py

seedling: $(VENV)/.installed ## train the bundled model from nothing (under three hours on two cores; goes on where it stopped)
	$(BIN)/python -m tools.seedling.make

seedling-eval: $(VENV)/.installed ## measure how well the bundled model follows prompts
	$(BIN)/python -m tools.seedling.evaluate daemon/darkroom/seedling --judge build/seedling/judge.pt

seedling-lora: $(VENV)/.installed ## train the bundled LoRA again (a quarter of an hour on one core; needed after `make seedling`)
	$(BIN)/python -m tools.seedling.lora
	$(BIN)/python -m tools.seedling.lora_effect

seedling-fewstep: $(VENV)/.installed ## train the LoRA for few steps again (a quarter of an hour on one core; needed after `make seedling`)
	$(BIN)/python -m tools.seedling.fewstep
	$(BIN)/python -m tools.seedling.fewstep_effect

clean: ## remove caches and builds; pictures, .venv and the training stay
	@rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find daemon tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp file records that what pyproject.toml and constraints.txt ask for is installed.

FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
		if $$python -c '$(FITS)' >/dev/null 2>&1; then \
			echo "Making $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); \
		fi; \
	done; \
	echo 'No Python 3.11, 3.12 or 3.13 with venv was found. Install one (on Debian also python3-venv), or name it:' >&2; \
	echo '  make PYTHON=/path/to/python3.12 …' >&2; exit 1

# torch goes first and by its exact version, so that a CPU build at hand is taken before the registry's.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing darkroom into $(VENV) (torch is large: the first time takes minutes)'
	@$(INSTALL) '$(TORCH)'
	@$(INSTALL) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing darkroom and the tools for tests and checks into $(VENV) (torch is large: the first time takes minutes)'
	@$(INSTALL) '$(TORCH)'
	@$(INSTALL) --editable '.[dev]'
	@$(COMPILE)
	@touch $(VENV)/.installed $@
