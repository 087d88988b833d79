# The one door, for people and CI. Every target does its own set-up; installs happen again only when
# pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Python compiles what is imported, once; to compile all that the test tools bring takes a minute.
INSTALL := $(PIP) --no-compile

# Tests start hundreds of processes, each of which would compile edgepp again where compiled files are not kept.
unexport PYTHONDONTWRITEBYTECODE

# One worker per processor; tests/conftest.py says which tests share one.
PARALLEL := --numprocesses logical --dist load

.PHONY: demo test check unit format diagram bench fuzz soak dist install-test service-test homelab homelab-here arm clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready  ## one Llama over two stage processes on this machine
	$(BIN)/edgepp models pull smollm2-135m
	$(BIN)/edgepp chat -m smollm2-135m --stages 2 -n 120 -p "What is a language model? Answer in two sentences."

test: $(VENV)/.ready-dev  ## every check and every test
	$(MAKE) check
	$(BIN)/edgepp models pull smollm2-135m
	$(BIN)/python -m pytest $(PARALLEL) || { echo "what failed is run once more, with nothing beside it" && \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures=none; }

unit: $(VENV)/.ready-dev  ## the tests without sockets, processes and models: a minute on two idle cores
	$(BIN)/python -m pytest $(PARALLEL) -p no:schemathesis tests/unit

check: $(VENV)/.ready-dev  ## format, lint, strict types, layer diagram
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

diagram: $(VENV)/.ready-dev  ## the rooms in ARCHITECTURE.md, from the contract that `check` enforces
	$(BIN)/python -m tests.builders.architecture

bench: $(VENV)/.ready-dev  ## the figures in the README; see bench/METHODOLOGY.md
	$(BIN)/edgepp models pull smollm2-135m
	$(BIN)/python -m bench.pipeline_gain --model smollm2-135m --stages 2 --threads 1
	$(BIN)/python -m bench.hop

MINUTES ?= 10
TARGET ?= all
SEED ?= 1

fuzz: $(VENV)/.ready-fuzz  ## hostile input for all that reads bytes of others: MINUTES=60 TARGET=wire,http-bodies
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --target $(TARGET)

soak: $(VENV)/.ready-dev  ## a cluster under faults, drawn at random: MINUTES=10 SEED=1
	$(BIN)/edgepp models pull smollm2-135m
	$(BIN)/python -m bench.soak --minutes $(MINUTES) --seed $(SEED)

dist: $(VENV)/.ready-dev  ## wheel and source distribution in dist/, built twice and compared
	$(BIN)/python -m tests.builders.distributions dist

install-test: $(VENV)/.ready-dev  ## install.sh in a bare Debian without Python; needs root and debootstrap, takes minutes
	$(BIN)/python -m tests.bare.install_check

service-test: $(VENV)/.ready-dev  ## `edgepp service` under a real systemd in a container; needs root, debootstrap and systemd-nspawn
	$(BIN)/python -m tests.bare.service_check

HOSTS ?=

homelab: $(VENV)/.ready-dev  ## machines over SSH, from nothing to a report: HOSTS="mac1 mac2 pi", the first one coordinates
	@[ -n "$(HOSTS)" ] || { echo 'name the machines as ssh knows them: make homelab HOSTS="mac1 mac2 pi"' >&2; exit 2; }
	$(BIN)/python -m tests.homelab $(HOSTS)

homelab-here: $(VENV)/.ready-dev  ## the same against three SSH servers in network namespaces here (Linux, root)
	$(BIN)/edgepp models pull smollm2-135m
	$(PIP:install=download) --dest .homelab/wheels .
	$(BIN)/python -m tests.homelab.here --wheels .homelab/wheels --out .homelab/here

arm: $(VENV)/.ready-dev  ## the exact tests under emulated aarch64, kept in docs/arm.txt (Linux, root)
	tests/arm/run.sh

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  "edgepp needs Python 3.11 to 3.13; this is %d.%d. Try: make PYTHON=python3.12 demo" % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no virtual environment could be made; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo "installing edgepp into $(VENV)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/bin/python
	@tests/install_packages.sh
	@echo "installing edgepp and its test tools into $(VENV)"
	@$(INSTALL) --editable '.[dev,clients]'
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-fuzz: $(VENV)/.ready-dev
	@echo "installing atheris into $(VENV)"
	@$(INSTALL) --editable '.[dev,fuzz]'
	@touch $@
