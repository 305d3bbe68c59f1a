# Every command does its own set-up, on a machine with Python 3.11 or newer and nothing else; set-up reruns only when its pins change.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
DEMO := .venv-demo/bin
PIP_INSTALL := -m pip install --quiet --quiet --disable-pip-version-check --no-deps

.PHONY: help demo test test-wheel check format-check lint mypy basedpyright imports format bench-lambda bench-memory bench-pubsub bench-sqs requirements setup clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv-demo/.installed ## index a folder with background tasks (FOLDER=... picks which)
	@$(DEMO)/python examples/index_folder/demo.py $(if $(FOLDER),"$(FOLDER)")

# The suite waits as much as it computes: three at a time on two cores, each module in one process, because of its servers.
test: .venv/.installed ## run the whole suite (ARGS="-k lease" narrows it)
	@$(BIN)/pytest $(if $(ARGS),$(ARGS),-n 3 --dist loadscope)

test-wheel: .venv/.installed ## run what needs no server on the built wheel, away from the checkout
	@$(BIN)/python -m tests.packaging.wheel_suite

check: format-check lint mypy basedpyright imports ## formatting, lint, types (two checkers), layers

format-check: .venv/.installed
	@$(BIN)/ruff format --check .

lint: .venv/.installed
	@$(BIN)/ruff check .

mypy: .venv/.installed
	@$(BIN)/mypy

basedpyright: .venv/.installed
	@$(BIN)/basedpyright

imports: .venv/.installed
	@$(BIN)/lint-imports --no-logo --no-cache

format: .venv/.installed ## format the code, and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bench-memory: .venv/.installed ## tasks a second in one process, beside huey, taskiq, dramatiq and Celery (ROUNDS=5, ONLY="cloudq, huey")
	@$(BIN)/python benchmarks/memory.py $(ARGS)

bench-lambda: .venv/.installed ## import and cost a record in Lambda, beside Powertools and a Celery app (ROUNDS=9)
	@$(BIN)/python benchmarks/lambda_host.py

bench-sqs: .venv/.installed ## on our SQS server, beside Celery, dramatiq_sqs, taskiq-aio-sqs and the raw loop (ROUNDS=3, ONLY="cloudq, raw", LATENCIES="2, 10")
	@$(BIN)/python benchmarks/sqs.py $(ARGS)

bench-pubsub: .venv/.installed ## on Google's Pub/Sub emulator, beside its client library, Celery and the raw loop (ROUNDS=3, ONLY="cloudq, raw")
	@$(BIN)/python benchmarks/pubsub.py $(ARGS)

requirements: .venv/.installed ## pin requirements/*.txt anew from pyproject.toml (ARGS=--upgrade takes newer versions)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS) \
		pyproject.toml --extra aws --extra gcp --extra cli --extra crypto --group dev --output-file requirements/dev.txt >/dev/null
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS) \
		pyproject.toml --extra aws --extra cli --group build --output-file requirements/demo.txt >/dev/null
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS) \
		--group localstack --output-file requirements/localstack.txt >/dev/null
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS) \
		--group infra --output-file requirements/infra.txt >/dev/null
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS) \
		--group checkov --output-file requirements/checkov.txt >/dev/null

setup: .venv/.installed ## make .venv, with everything the suite and the checks need

clean: ## remove what make made
	@rm -rf .venv .venv-demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/.requirements: requirements/dev.txt
.venv-demo/.requirements: requirements/demo.txt
%/.requirements:
	@test -n "$(PYTHON)" || { echo "cloudq needs Python 3.11 or newer, and none is on PATH: install one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "setting up $* with $(shell $(PYTHON) --version 2>/dev/null) from $< (once, up to a minute) ..."
	@$*/bin/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $*
	@$*/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

%/.installed: %/.requirements pyproject.toml
	@$*/bin/python $(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@
