# Two commands do it all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0

.PHONY: demo test check fast install bench lock clean

# The main job on the embedded default: a movie-review classifier, made faster and verified.
demo: install
	$(BIN)/hasten demo

# Everything that must hold: style, types, architecture, all tests.
test: install
	PATH="$(abspath $(BIN)):$$PATH" ./check all

# What a commit should pass: the same without slow tests and real models.
check: install
	PATH="$(abspath $(BIN)):$$PATH" ./check fast

install: $(VENV)/.installed

# torch first and alone: a later resolver step that finds it satisfied does not replace it by a GPU build.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard hasten/native/src/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hasten needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The published benchmark figures; needs an otherwise idle machine and about an hour.
bench: install
	$(BIN)/python benchmarks/run_all.py

# Rewrite constraints.txt from a fresh environment with the newest versions that pass.
lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet $(TORCH)
	.lock-venv/bin/pip install --quiet --editable '.[dev,energy,hub]'
	.lock-venv/bin/pip freeze --exclude-editable | sed -e 's/+cpu//' | sort -f > constraints.txt
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
