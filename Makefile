# Every target makes the virtual environment it needs; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
EXPORTER := $(VENV)/exporter-installed
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e
BUNDLE := bundles/demo

.PHONY: help demo test test-all gpu-check lint docs weights clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(EXPORTER)  ## Export the demo checkpoint and run the model card's example on it.
	$(BIN)/python -m corom.export.demo $(BUNDLE)

test: $(INSTALLED) weights  ## Run the tests, on real weights too.
	COROM_TEST_WEIGHTS=required $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(INSTALLED) weights  ## Run the slow tests as well.
	COROM_TEST_WEIGHTS=required $(BIN)/pytest -m "not gpu"

lint: $(INSTALLED)  ## Check format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror runtime/native/*.h runtime/native/*.cpp
	$(BIN)/mypy
	$(BIN)/mypy docs/commands.py

docs: $(INSTALLED)  ## Write docs/commands.md from the command line.
	$(BIN)/python docs/commands.py

gpu-check: $(INSTALLED)  ## Check and measure on an NVIDIA GPU. GPU_EXTRAS=tensorrt,gpu installs more.
	$(if $(GPU_EXTRAS),$(INSTALL) '.[dev,$(GPU_EXTRAS)]')
	$(BIN)/python -m corom.benchmarks.gpu -o benchmarks/results/gpu-check.json

weights: $(EXPORTER)  ## Fetch the demo weights, checked by sha256, into the cache.
	$(BIN)/python -m corom.export.sources demo

clean:  ## Remove the virtual environment and the demo bundle.
	rm -rf $(VENV) bundles build *.egg-info runtime/_native*.so

$(EXPORTER): pyproject.toml setup.py constraints.txt $(wildcard runtime/native/*)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[export]'
	touch $(EXPORTER)

$(INSTALLED): $(EXPORTER)
	$(INSTALL) '.[dev]'
	touch $(INSTALLED)
