# Thin: it makes .venv and calls the package. CONTRIBUTING.md has the same lines for a machine without make.
PYTHON ?= python3
# The CPU index that PyTorch's install page shows; empty: what pip is configured with.
TORCH_INDEX ?=
# More arguments for the command behind a target: make run ARGS="01 03 --profile quick"
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
SITE := $(VENV)/.ready-site
BROWSER := $(VENV)/.ready-browser
AXE := axe-core@4.14.1
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(PY) -m pip --disable-pip-version-check --no-input
# The pip that a Python brings may be years old; this one comes first, so that all machines install by the same rules.
NEWER_PIP := pip==26.3
# Nothing is built on a learner's machine but this course itself, which is Python alone: a build can fail in many ways.
INSTALL := $(PIP) install -qq --only-binary :all:

# Jupyter finds the kernel of this environment before any that was registered for the user, so none need be.
export JUPYTER_PREFER_ENV_PATH := 1
export TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help lab test run notebooks bench gate site a11y keyboard clean again

help:
	@echo "make lab         open the lessons in JupyterLab (installs into .venv first)"
	@echo "make test        lint, gates, unit tests and every lesson"
	@echo "make run         run every lesson headless; results in build/"
	@echo "make notebooks   run every lesson in full and store its outputs"
	@echo "make bench       measure side by side against peers"
	@echo "make gate        compare notebooks with sources, and claims with their bounds"
	@echo "make site        build the site from the stored notebooks; build/site/html/index.html"
	@echo "make a11y        axe-core on every page of the site, in a browser"
	@echo "make keyboard    move every control of the lessons by keys, in JupyterLab in a browser"
	@echo "make clean       remove build/ and caches; .venv, work and data/cache stay"

lab: $(READY)
	@$(PY) -m sslcourse lab $(ARGS)

test: $(READY)
	@$(PY) .ci/stages.py $(ARGS)

run: $(READY)
	@$(PY) -m sslcourse run $(ARGS)

notebooks: $(READY)
	@$(PY) -m sslcourse notebooks $(ARGS)

bench: $(READY)
	@$(PY) -m benchmarks
	@$(PY) -m benchmarks.pretraining race $(ARGS)

gate: $(READY)
	@$(PY) -m sslcourse gate $(ARGS)

site: $(SITE)
	@$(PY) -m sslcourse site $(ARGS)

# Chromium is the machine's: apt-get install chromium, or CHROMIUM=/path/to/it.
a11y: $(BROWSER) build/axe/node_modules/axe-core/axe.min.js
	@$(PY) tests/browser/axe.py build/site/html build/axe/node_modules/axe-core/axe.min.js

keyboard: $(BROWSER)
	@$(PY) tests/browser/keyboard.py $(ARGS)

clean:
	rm -rf build .pytest_cache .ruff_cache .ipynb_checkpoints
	find sslcourse tests benchmarks notebooks .ci -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last and holds this folder's path. It does not count when the Python below .venv is gone or the
# folder was moved: an environment survives neither.
ifneq ($(shell test "`cat $(READY) 2>/dev/null`" = "`pwd -P`" && $(PY) -c "" 2>/dev/null && echo whole),whole)
$(READY): again
endif

# Without a stamp the environment is made anew, because nobody knows how far the last installation came; with one, only
# the lists of packages have changed. torch goes first, alone, so that it can come from an index of its own.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing into $(VENV), once; some minutes. Download: torch (about 190 MB as a CPU build) and other packages (about"
	@echo "235 MB); on disk 2 GB. On Linux x86-64 the usual index gives torch with several GB of CUDA. To avoid that, stop here"
	@echo "and call: make $(MAKECMDGOALS) TORCH_INDEX=<the CPU index shown on https://pytorch.org/get-started/locally/>"
	@if test -e $(READY) && test "`cat $(READY)`" = "`pwd -P`" && $(PY) -m pip --version >/dev/null 2>&1; \
	  then rm $(READY); else $(PYTHON) -m venv --clear $(VENV); fi
	@$(INSTALL) $(NEWER_PIP)
	@echo "1/2 $(TORCH)"
	@$(INSTALL) $(TORCH) $${TORCH_INDEX:+--index-url "$$TORCH_INDEX"}
	@echo "2/2 everything else, as constraints.txt pins it"
	@$(INSTALL) -c constraints.txt -e '.[lessons,test]'
	@pwd -P > $(READY)
	@echo "Ready."

# What only these targets need, installed at their first call. axe-core comes from npm and lies under build/.
$(SITE): $(READY)
	@$(INSTALL) -c constraints.txt -e '.[site]'
	@touch $@

$(BROWSER): $(READY)
	@$(INSTALL) -c constraints.txt -e '.[browser]'
	@touch $@

build/axe/node_modules/axe-core/axe.min.js:
	@command -v npm >/dev/null || { echo "make a11y: npm is needed once, to fetch $(AXE)"; exit 1; }
	@mkdir -p build/axe && cd build/axe && npm install --no-save --no-audit --no-fund --silent $(AXE)
