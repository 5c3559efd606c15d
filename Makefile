# `make demo` and `make test` are all the set-up a fresh machine needs.
PYTHON ?= python3
PIP_INDEX ?=            # another package index: make demo PIP_INDEX=https://…
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q -c constraints.txt $(if $(strip $(PIP_INDEX)),--index-url $(strip $(PIP_INDEX)))
OUT ?= out
EHR_DATA ?= ../shared/data
export EHR_DATA
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test check fast docs which-model clean

demo: $(VENV)/.run
	$(BIN)/ehrseq run studies/demo.yaml $(OUT)/demo

test: check

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -n 2

fast: $(VENV)/.dev
	$(BIN)/pytest -n 2 -m "not slow"

export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs
	$(BIN)/python docs/task_language.py
	$(BIN)/mkdocs build --strict --quiet

STUDIES ?= $(OUT)/demo
which-model: $(VENV)/.run
	$(BIN)/python benchmarks/which_model.py docs/explanation/which-model.md $(STUDIES)

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[fast]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[dev,docs]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
