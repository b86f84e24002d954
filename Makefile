# Everything on a fresh machine with Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
LAPTOP := .venv-analyzer
BIN := $(VENV)/bin
PIP := install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint unit laptop bench clean

demo: $(VENV)/installed
	$(BIN)/i2am demo -o demo --overwrite

test: lint unit laptop

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy wants the package's name, whatever the folder of the clone is called.
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/i2am
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p i2am.schema -p i2am.recorder -p i2am.analyzer
	$(BIN)/lint-imports

# One process a core, one thread each: torch with threads of its own beside other work is many times slower.
unit: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto

# The analyzer's own tests where torch is not installed: a laptop needs none.
laptop: $(LAPTOP)/installed
	! $(LAPTOP)/bin/python -c "import torch" 2>/dev/null
	$(LAPTOP)/bin/pytest -q -n auto -m analyzer

bench: $(VENV)/installed
	for each in recording packing scan dataset truth precision custom; do $(BIN)/python benchmarks/$$each.py || exit 1; done

# --prefer-binary keeps a fresh machine from compiling anything.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip $(PIP) --prefer-binary --editable '.[all]'
	@touch $@

$(LAPTOP)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAPTOP)
	$(LAPTOP)/bin/python -m pip $(PIP) --prefer-binary --editable '.[netcdf,parquet,cluster]' pytest pytest-xdist hypothesis
	@touch $@

clean:
	rm -rf $(VENV) $(LAPTOP) build *.egg-info demo
