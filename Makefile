# Every target sets up what it needs: Debian packages by apt-get, a virtual environment in .venv on the system's python3.
# It is quick when nothing is missing. `make help` lists the targets.

PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup test demo lint bench soak soak-status simulate lab-up lab-down clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## packages and virtual environment, if something is missing
	@./setup.sh

test: setup ## all tests, on two cores in parallel
	@$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

demo: setup ## an address and an application that survive the power cut of their host
	@$(PYTHON) -m tests.demo

lint: setup ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: setup ## agents and mirror against the originals, side by side; writes build/bench.json
	@$(PYTHON) -m tests.bench

soak: setup ## the long runs whose figures stand in docs/evidence; resumable. CASE=name for one
	@$(PYTHON) -m tests.soak run $(CASE)

soak-status: setup ## which long runs still count, and which must be run again
	@$(PYTHON) -m tests.soak status

simulate: setup ## mirrors in a simulated world, every fault there is; SEEDS=n FIRST=k. Goes on where it stopped
	@$(PYTHON) -m tests.simulation run --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0)

lab-up: setup ## the two-node laboratory with Debian's cluster engine; then: vagrant/lab -h
	@vagrant/lab up --engine $(or $(ENGINE),debian)

lab-down: setup ## end the laboratory
	@vagrant/lab down

clean: ## remove what make made here
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
