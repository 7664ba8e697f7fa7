# Two commands do all the set-up: `make demo` and `make test`. A second call installs nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= demo

# uv is ten times faster than pip; without it pip does the same. uv reads UV_FIND_LINKS where pip reads PIP_FIND_LINKS.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo quick-demo test lint format bench clean

demo: $(STAMP)
	$(BIN)/limbeck demo --out $(OUT)

quick-demo: $(STAMP)
	$(BIN)/limbeck demo --quick --out $(OUT)-quick

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv || echo "uv is not to be had; going on with pip"
	if test -x $(BIN)/uv; then \
	  VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi
	touch $(STAMP)
