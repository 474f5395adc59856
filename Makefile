# Needs make and Python 3.11 or newer. Everything is installed into .venv; nothing else is touched.

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# The interpreter that makes .venv; empty: the first that is new enough.
PYTHON ?=
# More arguments for the command of `make demo`, and for pytest.
ARGS ?=
# What `make test-lowest` runs: what touches torch, Optuna, pydantic and the command line most.
LOWEST ?= tests/pruning/slimming/test_surgery.py tests/pruning/slimming/test_recalibration.py \
	tests/pruning/test_torch_private.py tests/agents/graph/test_encoders.py tests/search/config/test_loading.py tests/search/evaluation/test_evaluator.py \
	tests/search/test_samplers.py tests/search/study/test_ledger.py tests/search/study/test_storage.py tests/test_cli.py
# Tests run in so many processes.
JOBS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint types unit test-browser test-slow test-storages test-faults test-lowest test-extras test-gpu wheel docs reference tour methods map clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo ARGS='...' and make unit ARGS='...' pass arguments on;"
	@echo "  make install PYTHON=/path/to/python chooses the interpreter."

install: $(INSTALLED) ## make .venv with everything in it (again only when its inputs change)

# torch comes first: with it in place, no other package asks for another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(PY) ] || ! $(PY) -c ''; then \
		if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; \
		else set -- python3.11 python3.12 python3.13 python3.14 python3 python; fi; \
		found=; seen=; \
		for candidate in "$$@"; do \
			if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
			then found=$$candidate; break; fi; \
			version=$$("$$candidate" --version 2>/dev/null) && seen="$${seen:+$$seen, }$$candidate is $$version"; \
		done; \
		if [ -z "$$found" ]; then \
			echo "espalier needs Python 3.11 or newer with its venv module (found: $${seen:-none})." >&2; \
			echo "Install one, or name it: make install PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$found" --version) ($$(command -v "$$found"))"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing torch (the largest download)"
	@$(PY) -m pip install --quiet --constraint constraints.txt torch setuptools
	@echo "Installing espalier and its other dependencies"
	@$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,docs]'
	@touch $(INSTALLED)

demo: install ## search widths for the handwritten digits, into runs/digits
	$(VENV)/bin/espalier search configs/digits.yaml $(ARGS)

test: install ## all of lint, types, unit and wheel: what CI runs
	@$(MAKE) --no-print-directory -j 2 lint types wheel
	@$(MAKE) --no-print-directory unit

lint: install ## ruff, and the one-way imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache

types: install ## mypy, strict
	$(PY) -m mypy

unit: install ## the tests and the examples in docstrings, without the slow ones
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not storages and not faults and not extras and not examples and not gpu" $(ARGS)

test-slow: install ## the slow tests
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m slow --timeout 1800 $(ARGS)

test-storages: install ## searches on SQLite, a journal file, PostgreSQL and MariaDB; installs and starts the servers
	@.ci/servers
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m storages --timeout 600 $(ARGS)

test-browser: install ## open the report of a comparison, and the site, in Chromium (apt-get install chromium), if there is one
	$(PY) -m pytest -q -m slow -k chromium $(ARGS) tests/report tests/test_site.py

test-faults: install ## kills drivers, workers and nodes of a Ray cluster on this machine while they search
	$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "faults and not slow" --timeout 900 $(ARGS) --ignore tests/faults tests
	$(PY) -m pytest -q -m faults $(ARGS) tests/faults

test-gpu: install ## training, ladder, search, proxies, latency and pruning on a GPU, beside the CPU; says so where there is none
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
		then $(PY) -m pytest -q -m gpu $(ARGS) tests/test_gpu.py; else echo "no GPU here: nothing is tested"; fi

test-extras: install ## the examples, and tasks of other libraries, installed beside .venv without what they depend on
	@[ -d .venv-extras/trainers/lightning ] || $(PY) -m pip install --quiet --no-deps --target .venv-extras/trainers \
		accelerate lightning lightning-utilities torchmetrics
	@[ -d .venv-extras/yolo/ultralytics ] || $(PY) -m pip install --quiet --no-deps --target .venv-extras/yolo \
		'ultralytics==8.4.*' 'torchvision==0.28.*' opencv-python-headless ultralytics-thop polars polars-runtime-32 \
		requests charset-normalizer idna urllib3 certifi
	@[ -d .venv-extras/peers/modelopt ] || $(PY) -m pip install --quiet --no-deps --target .venv-extras/peers \
		'nvidia-modelopt==0.47.*' 'torchprofile<0.1' pulp omegaconf
	PYTHONPATH=$(CURDIR)/.venv-extras/peers $(PY) -m pytest -q -m extras $(ARGS) tests/search/methods/test_modelopt_fastnas.py
	PYTHONPATH=$(CURDIR)/.venv-extras/trainers $(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(ARGS) tests/test_examples.py \
		tests/search/tasks/trainers/test_huggingface.py tests/search/tasks/trainers/test_huggingface_detection.py \
		tests/search/tasks/trainers/test_lightning.py tests/search/tasks/classification/test_data_parallel.py \
		tests/pruning/importance/test_regularized_trainers.py tests/pruning/gates/test_gated_trainers.py
	PYTHONPATH=$(CURDIR)/.venv-extras/yolo $(PY) -m pytest -q -m extras $(ARGS) tests/search/tasks/trainers/test_ultralytics.py \
		tests/search/tasks/classification/test_batches.py

test-lowest: ## the fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	@[ -x .venv-lowest/bin/python ] || $(or $(PYTHON),python3.11) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch setuptools
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --no-build-isolation \
		--editable '.[plot,postgresql,mysql]' pytest pytest-timeout pytest-xdist hypothesis pexpect
	timeout 1800 .venv-lowest/bin/python -m pytest -q -n $(JOBS) --dist worksteal \
		-m "not slow and not storages and not faults and not distributed" $(LOWEST) $(ARGS)

wheel: install ## build the wheel, install it elsewhere, run the command there
	$(PY) .ci/check_wheel.py

docs: install ## build the site into site/, strict: no broken link, anchor or reference
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

reference: install ## write docs/reference/config.md and cli.md from the config's sections and the command
	$(PY) docs/reference.py

tour: install ## run the notebooks of docs/tutorials again, and keep what they show
	$(PY) docs/notebooks.py

methods: install ## write docs/methods.md, the page of all that a config can name, from the tables
	$(PY) docs/methods.py

map: install ## draw docs/images/map.svg, which CONTRIBUTING shows, from the imports
	$(PY) docs/map.py

clean: ## remove .venv, build products and caches; runs/ stays
	rm -rf $(VENV) .venv-lowest .venv-extras build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
