# Everything on a fresh machine with Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
NEXT_PYTHON ?= python3.13
VENV := .venv
LAPTOP := .venv-analyzer
LOWEST := .venv-lowest
NEXT := .venv-next
BIN := $(VENV)/bin
PIP := install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs unit wheel laptop lowest next bench clean

demo: $(VENV)/installed
	$(BIN)/i2am demo -o demo --overwrite

# Types, pages and an installation take one core each, so they run beside each other; the tests take all.
test: $(VENV)/installed
	$(MAKE) --jobs 2 lint docs $(LAPTOP)/installed
	$(MAKE) unit
	$(MAKE) laptop

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy wants the package's name, whatever the folder of the clone is called.
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/i2am
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p i2am.schema -p i2am.recorder -p i2am.analyzer
	$(BIN)/lint-imports

# The site, from the pages where they lie: build/docs/index.html. A link, an anchor or a parameter that is not there is an error.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir build/doctrees -c docs . build/docs

# All that `laptop` does not run. One process a core, one thread each: torch with threads of its own beside other work is many times slower.
unit: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadgroup -m "not analyzer or torch"

# What users install. Its own folder, because an editable install would hide a file that the wheel lacks.
wheel: $(VENV)/installed
	rm -rf build/lib build/bdist* build/*.whl build/site build/demo
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/site build/*.whl
	cd build && PYTHONPATH=site $(CURDIR)/$(BIN)/python -P -c "import i2am; assert 'site' in i2am.__path__[0].split('/'), i2am.__path__"
	cd build && PYTHONPATH=site $(CURDIR)/$(BIN)/python -P -m i2am.analyzer.cli demo -o demo

# The analyzer's own tests on the wheel, where torch is not installed: a laptop needs none.
laptop: $(LAPTOP)/installed wheel
	$(LAPTOP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/*.whl
	! $(LAPTOP)/bin/python -c "import torch" 2>/dev/null
	cd build && ../$(LAPTOP)/bin/python -c "import i2am; assert 'site-packages' in i2am.__path__[0].split('/'), i2am.__path__"
	$(LAPTOP)/bin/pytest -q -n auto -m analyzer

# The lowest versions that pyproject.toml allows: the tests of what calls other packages, one or more for each of them.
lowest: $(LOWEST)/installed
	$(LOWEST)/bin/pytest -q -n auto -m analyzer tests/schema $(addprefix tests/analyzer/, aggregation cli/test_cli.py cli/test_terminal.py \
		datasets/test_cluster.py evaluation figures maps metrics numerics output overview/test_group.py storage/test_address.py \
		storage/test_object_store.py trace)

# The same with another Python: `make next NEXT_PYTHON=python3.13`. What differs is the language, so a part of the tests will do.
next: $(NEXT)/installed
	$(NEXT)/bin/pytest -q -n auto -m analyzer tests/analyzer/cli tests/analyzer/figures tests/analyzer/output tests/analyzer/trace tests/analyzer/maps tests/schema

bench: $(VENV)/installed
	for each in recording packing scan dataset truth precision custom overview page; do $(BIN)/python benchmarks/$$each.py || exit 1; done

# --prefer-binary keeps a fresh machine from compiling anything.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip $(PIP) --prefer-binary --editable '.[all,dev]'
	@touch $@

$(LAPTOP)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAPTOP)
	$(LAPTOP)/bin/python -m pip $(PIP) --prefer-binary '.[netcdf,parquet,cluster,remote,plot]' pytest pytest-xdist hypothesis 'moto[s3]' flask flask-cors
	@touch $@

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --prefer-binary --constraint constraints-lowest.txt \
		--editable '.[netcdf,parquet,cluster,remote,plot]' pytest pytest-xdist hypothesis 'moto[s3]' flask flask-cors
	@touch $@

$(NEXT)/installed: pyproject.toml constraints.txt
	$(NEXT_PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip $(PIP) --prefer-binary --editable '.[netcdf,parquet,cluster,remote,plot]' pytest pytest-xdist hypothesis 'moto[s3]' flask flask-cors
	@touch $@

clean:
	rm -rf $(VENV) $(LAPTOP) $(LOWEST) $(NEXT) build *.egg-info demo
