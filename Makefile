# The targets; `make help` lists them. PYTHON names the interpreter a new environment is made with;
# VENV another place for it. An existing environment works too: make test VENV=/path/to/it
PYTHON ?= python3
KAGGLE_PYTHON ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kit-installed
DEMO ?= demo
MESSAGE ?= kit $(shell git rev-parse --short HEAD 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-lowest test-kaggle lint study study-ablation bench docs data submit kernels push-kernels clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make a virtual environment with kit and all it needs

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing kit and what it needs: 6.6 GB with torch for CUDA, some minutes'
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## synthetic competition, both stages trained, submission.csv and scores
	test -d $(DEMO)/data || $(BIN)/kit phantom $(DEMO)/data --patients 240 --size 64
	$(BIN)/kit run $(DEMO)/data --recipe demo --run $(DEMO)/run

test: $(STAMP)  ## the whole suite but the slow tests, with line coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --cov

test-slow: $(STAMP)  ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-lowest: $(STAMP)  ## the suite with the lowest versions that setup.py declares
	$(call test-with,.venv-lowest,$(PYTHON),--resolution lowest-direct)

test-kaggle: $(STAMP)  ## the suite with the versions of Kaggle's image (KAGGLE_PYTHON=python3.12)
	$(call test-with,.venv-kaggle,$(KAGGLE_PYTHON),--constraint .ci/kaggle.txt)

# The environment $(1), made with the interpreter $(2); $(3) says which versions uv chooses.
define test-with
	$(BIN)/uv venv --quiet --seed --allow-existing --python $(2) $(1)
	$(BIN)/uv pip install --quiet --python $(1)/bin/python $(3) --editable '.[test]'
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -m "not slow" -n auto --dist loadfile
endef

lint: $(STAMP)  ## ruff (style, likely errors) and mypy (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

study: $(STAMP)  ## what the sequence model is worth on three phantoms
	$(BIN)/python benchmarks/study.py

study-ablation: $(STAMP)  ## what each idea past the published method is worth there
	$(BIN)/python benchmarks/ablation.py

bench: $(STAMP)  ## speed against the reference implementation and a lower bound
	$(BIN)/python benchmarks/bench.py

docs: $(STAMP)  ## the API reference, from the docstrings, to docs/api/
	NO_ALBUMENTATIONS_UPDATE=1 $(BIN)/python docs/reference.py

data: $(STAMP)  ## download the competition's files (180 GB zip, 431 GB unpacked) to data/
	$(BIN)/kit download data

submit: $(STAMP)  ## send FILE to Kaggle (MESSAGE=, SAMPLE=, DRY=1, AGAIN=1), wait for its score
	@test -n "$(FILE)" || { echo "name the file: make submit FILE=runs/x/submission.csv"; exit 2; }
	$(BIN)/kit submit "$(FILE)" --message "$(MESSAGE)" $(if $(SAMPLE),--sample "$(SAMPLE)") $(if $(DRY),--dry-run) $(if $(AGAIN),--again)

kernels: $(STAMP)  ## build Kaggle notebooks (KAGGLE_USER=, RECIPE=, BACKBONE=FILE or RUN=)
	$(BIN)/kit kernels $(if $(RUN),--run $(RUN)) $(if $(RECIPE),--recipe $(RECIPE)) \
		$(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(SYNTHETIC),--synthetic)

push-kernels: $(STAMP)  ## upload the datasets, push the notebooks, fetch their output
	$(BIN)/kit push-kernels $(if $(RANDOM_WEIGHTS),--random-weights)

clean:  ## remove what make demo and the studies wrote
	rm -rf $(DEMO) study ablation
