# make kuhn    environment, install, the main job on the embedded model (CPU, minutes); ends in $(OUT)
# make sae     environment, install, the embedded model before and after self-play, the report on its features; in $(SAE_OUT)
# make test    environment, install, the tests
# make check   what CI runs: lint, types, tests
PYTHON ?= python3
VENV ?= .venv
OUT ?= outputs/kuhn
SAE_OUT ?= outputs/sae
TESTARGS ?=

BIN := $(VENV)/bin
# torch first, alone under its pin: resolved together with the rest, pip may settle on another build of it.
PIP := $(BIN)/python -m pip install --constraint constraints.txt
INPUTS := setup.cfg constraints.txt
RUN_STAMP := $(VENV)/.installed-run
SAE_STAMP := $(VENV)/.installed-sae
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: install install-run kuhn sae test lint types check format clean

install: $(DEV_STAMP)

install-run: $(RUN_STAMP)

define make_environment
$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed: make PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
$(PYTHON) -m venv $(VENV)
$(PIP) torch
endef

$(RUN_STAMP): $(INPUTS)
	$(make_environment)
	$(PIP) --editable .
	touch $@

$(SAE_STAMP): $(INPUTS)
	$(make_environment)
	$(PIP) --editable ".[sae]"
	touch $(RUN_STAMP) $@

# What the tests need includes what a run needs.
$(DEV_STAMP): $(INPUTS)
	$(make_environment)
	$(PIP) --editable ".[peft,sae,textarena,dev]"
	touch $(RUN_STAMP) $(SAE_STAMP) $@

# Everything the job needs is in the repository, so nothing is looked up. One thread: the model is too small for more.
kuhn: $(RUN_STAMP)
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TRL_EXPERIMENTAL_SILENCE=1 OMP_NUM_THREADS=1 \
		$(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml \
		recipes/kuhn.py --config recipes/kuhn_tiny.yaml --output_dir $(OUT)

sae: $(SAE_STAMP)
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TRL_EXPERIMENTAL_SILENCE=1 OMP_NUM_THREADS=1 \
		$(BIN)/python recipes/sae_report.py --config recipes/sae_report_kuhn_tiny.yaml --output_dir $(SAE_OUT)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(TESTARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP)
	$(BIN)/mypy

check: lint types test

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist outputs *.egg-info .pytest_cache .ruff_cache .mypy_cache
