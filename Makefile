PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
ARGS ?=
# Tests start hundreds of processes, of which each would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=
# Three files of tests at a time, on two processors: most of a test is waiting for what it has started.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
BEHIND_PUSHPIN := $(patsubst %,tests/acceptance/test_%.py,streams clients beginnings held_streams proxy_readers access cross_origin faults postgres console browser) tests/proof/test_process_deaths.py
# Once more, as PostgreSQL keeps statements prepared, by plans that suit no value in particular.
PREPARED := {"server_side_binding": true, "prepare_threshold": 1, "options": "-c plan_cache_mode=force_generic_plan"}
PREPARING := $(patsubst %,tests/integration/test_%.py,console databases numbering plans reading relay reset_readers sending undelivered)

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## create .venv with the pinned packages

# Debian's python3 comes without ensurepip.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || sh deploy/apt.sh python3-venv
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e '.[tasks]'
	@touch $@

demo: $(STAMP) ## run everything on this machine: page, web, worker, beat, broker
	@exec $(BIN)/python -m deploy.demo $(ARGS)

demo-check: $(STAMP) ## the same unattended: send events, check that each arrived
	@$(BIN)/python -m deploy.demo --check $(ARGS)

system: $(STAMP) # what the tests need and pip does not have
	@command -v pushpin >/dev/null || sh deploy/apt.sh pushpin
	@command -v chromium >/dev/null || sh deploy/apt.sh chromium
	@command -v firefox-esr >/dev/null || sh deploy/apt.sh firefox-esr
	@test -x /usr/sbin/pgbouncer || sh deploy/apt.sh pgbouncer
	@test -x /usr/sbin/rabbitmq-server || sh deploy/apt.sh rabbitmq-server
	@test -x /usr/sbin/nginx || sh deploy/apt.sh nginx-light
	@command -v kubectl >/dev/null || sh deploy/apt.sh kubernetes-client
	@command -v curl >/dev/null || sh deploy/apt.sh curl
	@test -x /usr/sbin/ip || test -x /sbin/ip || sh deploy/apt.sh iproute2
	@command -v promtool >/dev/null || sh deploy/apt.sh prometheus
	@command -v faketime >/dev/null || sh deploy/apt.sh faketime

js/node_modules/.stamp: $(STAMP) js/package.json # node and npm come with the Python packages
	@PATH="$(CURDIR)/$(BIN):$$PATH" npm install --prefix js --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

js: js/node_modules/.stamp ## build the browser client into eventstream/static
	@cd js && ../$(BIN)/node build.ts ../eventstream/static/eventstream

js-test: js/node_modules/.stamp ## types and unit tests of the browser client
	cd js && ../$(BIN)/node node_modules/.bin/tsc
	cd js && ../$(BIN)/node --test --test-reporter=dot 'tests/*.test.ts'

test: system js-test ## the whole suite, on real servers that it starts itself; ARGS for pytest
	$(PYTEST) $(ARGS)
	$(BIN)/python -m tests.support.postgres -- $(PYTEST) tests/integration tests/proof/test_histories.py tests/proof/test_initial_states.py $(ARGS)
	ES_DB_OPTIONS='$(PREPARED)' $(BIN)/python -m tests.support.postgres -- $(PYTEST) $(PREPARING) $(ARGS)

chaos: system ## the real installation under faults; SECONDS=60, SEED= to repeat a run
	$(BIN)/python -m tests.proof.chaos $(or $(SECONDS),60) $(SEED)

backlog: system ## drain COUNT=1000000 events of one channel; print rate, memory, latencies
	$(BIN)/python -m tests.proof.backlog $(or $(COUNT),1000000)

hosts: system ## several machines in namespaces, one down at a time; SECONDS=60, SEED=
	$(BIN)/python -m tests.proof.hosts $(or $(SECONDS),60) $(SEED)

mutations: system ## break the code in known ways, on a copy, and see that tests notice
	$(BIN)/python -m tests.proof.mutations $(ARGS)

docs: $(STAMP) ## the documentation's site into var/site, warnings are errors
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

package: $(STAMP) ## build sdist and wheel into dist
	rm -rf dist
	$(BIN)/python -m hatchling build

matrix: $(STAMP) ## tox: every supported Python and Django, lowest and newest packages
	$(BIN)/tox run $(ARGS)

python313: ## the suite on Python 3.13, Debian 13's, in a chroot; as root
	@command -v mmdebstrap >/dev/null || sh deploy/apt.sh mmdebstrap
	sh tests/other_debian.sh trixie py313-django52-newest,py313-django60-newest

newest-pushpin: system ## the tests of streams behind Pushpin, with Debian sid's, 1.41; as root
	@command -v mmdebstrap >/dev/null || sh deploy/apt.sh mmdebstrap
	sh tests/newest_pushpin.sh
	PATH="$(CURDIR)/var/pushpin/bin:$$PATH" $(BIN)/python -m pytest -k 'not direct' $(or $(ARGS),$(BEHIND_PUSHPIN))

bench: system ## compare with the peer and the physical floor; QUICK=1, ROUNDS=3, ONLY='send idle'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

lint: $(STAMP) ## ruff, migrations, system checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python manage.py makemigrations --check --dry-run --settings=tests.settings
	$(BIN)/python manage.py check --fail-level WARNING --settings=tests.settings

types: $(STAMP) ## mypy
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what these targets made
	rm -rf js/node_modules js/dist js/LICENSE .venv .tox var dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help venv bench demo demo-check system js js-test test chaos backlog mutations package matrix lint types format clean hosts docs python313 newest-pushpin
