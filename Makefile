# Each target sets up what it needs: a virtual environment in .venv with the exact versions of requirements.lock.
# An active conda or virtual environment with the package in it is used as it is with: make quickstart PYTHON=python ENV=
SHELL := /bin/bash
# not ?=, which takes the shell's variable of that name: ENV is a file that POSIX shells read, and `make clean` removes $(ENV)
# the newest Python here that can run it; a name on PATH may still be none, so each is asked
PYTHON = $(shell for name in python3.13 python3.12 python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
ENV := .venv
ifneq ($(ENV),)
export PATH := $(abspath $(ENV))/bin:$(PATH)
INSTALLED := $(ENV)/installed
endif
# cuBLAS is reproducible only with this set before torch is imported
export CUBLAS_WORKSPACE_CONFIG := :4096:8
# DVC's own place for pickles, /var/tmp/dvc, is open to all users of a machine
export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.dvc/tmp/site
EXPERIMENT := digits-small
# runs side by side; empty: one per core
JOBS :=

# the lowest torch that pyproject.toml admits, and what holds with it: the layer
LOWEST = $(shell sed -n 's/^dependencies = \["torch>=\([0-9.]*\)"\].*/\1/p' pyproject.toml)
LAYER = $(addprefix localnorm/,layers.py modes.py convert.py eval_mode.py prediction.py) \
	$(patsubst %,tests/test_%.py,layers cpu convert eval_mode prediction elsewhere)

.PHONY: help env quickstart repro released compare html test test-lowest soak lab strip-notebooks bench bench-card clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

env: $(INSTALLED) ## set up the environment and nothing else

quickstart: $(INSTALLED) ## a demonstration in minutes: set the paper, then train, ask and draw on scikit-learn's digits
	python -m localnorm.pipeline demonstrate $(EXPERIMENT) $(if $(JOBS),--jobs $(JOBS))

repro: $(INSTALLED) ## everything: digits, CIFAR-10, Stanford Cars (days on two cores, less with a GPU)
	@python -m localnorm.pipeline check
	@# 1: a run failed, for want of memory say; DVC tries it again alone. Ctrl-C (130) ends all
	python -m localnorm.pipeline runs --plan $(if $(JOBS),--jobs $(JOBS)) || [ $$? -eq 1 ]
	python -m localnorm.pipeline stages

compare: $(INSTALLED) ## expected against obtained: the committed results beside yours; fails where they differ
	@python -m localnorm.compare

html: $(INSTALLED) ## a finished run as web pages that need no network, with a demonstration
	@python -m localnorm.render web

released: $(INSTALLED) ## the released protocol at full length instead (days, GPUs)
	@cmp -s params/released.yaml params.yaml || [ ! -e .git ] || git diff --quiet HEAD -- params.yaml || \
		{ echo "params.yaml has changes that are not committed, and params/released.yaml would overwrite them; commit them first (git commit params.yaml), or run params.yaml as it is: make repro"; exit 1; }
	@# an archive has no git that could bring params.yaml back
	@cmp -s params/released.yaml params.yaml || [ -e .git ] || cp -v params.yaml params/replaced-$$(date +%Y%m%d-%H%M%S).yaml
	cmp -s params/released.yaml params.yaml || cp params/released.yaml params.yaml
	@python -m localnorm.pipeline check
	@# one run at a time, unlike `repro`: a ResNet-152 takes a GPU for itself
	dvc repro --keep-going

test: $(INSTALLED) ## lint, unit tests, and the pipeline and its notebooks at smoke size in a copy
	ruff check . && ruff format --check .
	python -m pytest -n auto --maxprocesses 4

test-lowest: .venv-lowest/installed ## the layer's tests with the lowest torch that is admitted, in an environment of its own (5 GB)
	.venv-lowest/bin/python -m pytest -n auto --maxprocesses 4 $(LAYER)

soak: $(INSTALLED) ## kill the digits pipeline at random moments, 50 times or for 40 minutes, and compare the results
	python tests/soak.py

lab: $(INSTALLED) ## JupyterLab, with the notebook to read first; notebooks/README.md has the others in reading order
	jupyter lab notebooks/tour.ipynb

strip-notebooks: $(INSTALLED) ## take outputs, counts and versions out of all notebooks that were saved
	nbstripout --keep-id --extra-keys metadata.language_info.version notebooks/*.ipynb

bench: $(INSTALLED) ## speed and memory against BatchNorm, in one run
	python -m localnorm.cost
	python -m localnorm.bench

bench-card: $(INSTALLED) ## everything that has to be known of a GPU, in ten minutes and one table: data/results/card.csv
	python -m localnorm.card

clean: ## remove the environment; data and results stay
	rm -rf $(ENV) .venv-lowest

# the lock is installed first and whole, then the package itself in place
$(ENV)/installed: requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "localnorm needs Python 3.11 or newer, and none is on PATH; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; name a Python of 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("localnorm needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another: make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version_info[:2])'
	@echo "setting up $(ENV) with $(PYTHON)"
	@# half an environment, of another Python perhaps, starts anew; a finished one, or one from elsewhere, is never emptied
	$(PYTHON) -m venv $(if $(wildcard $(ENV)/installed),,$(if $(filter .venv,$(ENV)),--clear)) $(ENV)
	$(ENV)/bin/python -m pip install --progress-bar on --disable-pip-version-check -r requirements.lock
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@# Without the first line every notebook that starts prints a paragraph about sockets on this machine. By the others JupyterLab finds
	@# in a notebook what its kernel says of Python, whose version would differ: else it marks a notebook as changed that was only opened.
	mkdir -p $(ENV)/etc/ipython && printf '%s\n' 'c.IPKernelApp.log_level = "ERROR"' \
		'import os; from ipykernel.ipkernel import IPythonKernel' \
		'if "JPY_SESSION_NAME" in os.environ: IPythonKernel.language_info.pop("version")' > $(ENV)/etc/ipython/ipython_kernel_config.py
	touch $@

# whatever does not depend on torch's version is of the locked one
.venv-lowest/installed: requirements.lock pyproject.toml
	@[ -n "$(LOWEST)" ] || { echo 'pyproject.toml has no line dependencies = ["torch>=..."] to take the lowest torch from'; exit 1; }
	$(PYTHON) -m venv --clear .venv-lowest
	grep -vE '^(torch|triton|nvidia|cuda|setuptools)' requirements.lock > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt torch==$(LOWEST) torchvision timm \
		hypothesis numpy onnx onnxruntime onnxscript pytest pytest-xdist pyyaml safetensors
	touch $@
