# `make quickstart` and `make test` are the two commands; both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/quickstart
# torch and transformers are what the parity tests compare with, lm-evaluation-harness what scores
# are compared with, libtpu compiles for TPUs without one, qwix multiplies in 8 bits, submitit
# submits to Slurm; without hf, harness, tpu, quantization or slurm those tests skip.
TEST_EXTRAS ?= beam,dev,harness,hf,quantization,s3,slurm,tpu
PYTEST_FLAGS ?=
CHAOS_FLAGS ?= --signals=200

TAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS := $(wildcard constraints/$(TAG).txt)
# Python compiles what it imports: with all of TensorFlow and its kin, pip would take twice as long.
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -q --no-compile $(addprefix -c ,$(CONSTRAINTS))

.PHONY: quickstart test lint pytest chaos clean help

help:
	@echo "make quickstart   install, train a small LLaMA, watch its capabilities grow (about 5 minutes)"
	@echo "make test         install, then ruff, mypy and pytest"
	@echo "make chaos        kill training runs 200 times, and compare them with one left alone"
	@echo "make clean        remove the environment and the quickstart's run"

quickstart: $(VENV)/.installed
	$(VENV)/bin/python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=$(RUN_DIR)

test: lint pytest

# A worker that dies ends the run: where it is replaced, pytest-xdist may lose its file, and wait.
pytest: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart=0 $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

chaos: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.chaos $(CHAOS_FLAGS)

clean:
	rm -rf $(VENV) $(RUN_DIR)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: jaxllm needs Python 3.11 or later; try make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing jaxllm into $(VENV) (a few minutes the first time) …"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing jaxllm and its test tools into $(VENV) (a few minutes the first time) …"
	$(INSTALL) -e '.[$(TEST_EXTRAS)]'
	@touch $@ $(VENV)/.installed
