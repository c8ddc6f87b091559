# Each target sets up what it needs: a virtual environment in .venv with the exact versions of requirements.lock.
# An active conda or virtual environment with the package in it is used as it is with: make quickstart PYTHON=python ENV=
SHELL := /bin/bash
PYTHON ?= python3.11
ENV ?= .venv
ifneq ($(ENV),)
export PATH := $(abspath $(ENV))/bin:$(PATH)
INSTALLED := $(ENV)/installed
endif
# cuBLAS is reproducible only with this set before torch is imported
export CUBLAS_WORKSPACE_CONFIG := :4096:8
# DVC's own place for pickles, /var/tmp/dvc, is open to all users of a machine
export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.dvc/tmp/site
EXPERIMENT ?= digits-small
# runs side by side; empty: one a core
JOBS ?=

.PHONY: help quickstart repro released compare html test lab bench clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(INSTALLED) ## the whole pipeline on scikit-learn's digits: results, figures, paper
	python -m localnorm.pipeline runs $(EXPERIMENT) $(if $(JOBS),--jobs $(JOBS))
	dvc repro report@$(EXPERIMENT)
	dvc repro --single-item shifts@$(EXPERIMENT) figure-batches@$(EXPERIMENT) figure-fixed-against-batch figure-one-image figure-strengths $(if $(filter digits-small,$(EXPERIMENT)),figure-teaser) numbers paper
	@[ ! -e .git ] || python -m localnorm.compare $(EXPERIMENT) || true # an experiment of one's own has nothing to compare with
	@python -m localnorm.results $(EXPERIMENT)

repro: $(INSTALLED) ## everything: digits, CIFAR-10, Stanford Cars (a day on two cores)
	@python -m localnorm.pipeline check
	dvc repro --keep-going

compare: $(INSTALLED) ## expected against obtained: the committed results beside yours
	@python -m localnorm.compare

html: $(INSTALLED) ## a finished run as web pages that need no network
	@python -m localnorm.html

released: $(INSTALLED) ## the released protocol at full length instead (days, GPUs)
	@# the README's figure shows a digit, and the released protocol has none
	[ -d data/prepared/digits-small ] || dvc repro prepare@digits-small
	cp params/released.yaml params.yaml
	@python -m localnorm.pipeline check
	dvc repro --keep-going

test: $(INSTALLED) ## lint, unit tests, and the pipeline and its notebooks at smoke size in a copy
	ruff check . && ruff format --check .
	python -m pytest -n auto --maxprocesses 4

soak: $(INSTALLED) ## kill the digits pipeline at random moments, 50 times or for 40 minutes, and compare the results
	python tests/soak.py

lab: $(INSTALLED) ## JupyterLab on the notebooks
	jupyter lab notebooks

bench: $(INSTALLED) ## speed and memory against BatchNorm, in one run
	python -m localnorm.cost
	python -m localnorm.bench

clean: ## remove the environment; data and results stay
	rm -rf $(ENV)

# the lock is installed first and whole, then the package itself in place
$(ENV)/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; name a Python of 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --progress-bar on --disable-pip-version-check -r requirements.lock
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@# without this, every notebook that starts prints a paragraph about sockets on this machine
	mkdir -p $(ENV)/etc/ipython && echo 'c.IPKernelApp.log_level = "ERROR"' > $(ENV)/etc/ipython/ipython_kernel_config.py
	touch $@
