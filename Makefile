# `make repro` runs the main job from nothing, `make test` checks everything. Both need Python 3.11 and the package index.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
PIP := pip install --quiet --disable-pip-version-check --no-deps --require-hashes

export PATH := $(BIN):$(PATH)
# Stages side by side must not spin for work: torch's threads would take the processors from one another. One alone should.
export OMP_WAIT_POLICY := PASSIVE
bench: export OMP_WAIT_POLICY := ACTIVE
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

# The store that data.dvc names is named to DVC too, which else warns that there is no default one. What it took is not
# shown; why it fails is, which --quiet would hide.
RECORDS = test -e data/snapshot.jsonl.gz || \
	dvc pull $$(sed -n 's/^  remote: /--remote /p' data.dvc) data.dvc >/dev/null

.PHONY: demo repro markov tcsm ar2diff test test-slow bench lint ui serve env lock clean-env

demo: $(READY)  ## a first look in three minutes: .demo/reports/report.html; touches nothing else
	@gtl demo

repro: $(READY)  ## environment, sample data, pipeline, report
	@$(RECORDS)
	@if test -e dvc.lock && dvc status --quiet --with-deps report register 2>/dev/null; then dvc repro; else gtl sweep; fi
	@echo
	@echo "report: reports/report.html (and reports/report.md); runs: make ui"

markov: $(READY)  ## the study on Markov chains: reports/markov.md
	@dvc repro gtl_lightning/studies/markov/dvc.yaml:markov-report

tcsm: $(READY)  ## the study of target concrete score matching: reports/tcsm.md
	@$(RECORDS)
	@dvc repro gtl_lightning/studies/tcsm/dvc.yaml:tcsm-report

ar2diff: $(READY)  ## the study of AR2Diff, a causal model continued as a denoiser: reports/ar2diff.md
	@$(RECORDS)
	@dvc repro gtl_lightning/studies/ar2diff/dvc.yaml:ar2diff-report

# Two workers, one thread each: most tests are one process on one core. By file, so that what its tests share is made once.
test: export OMP_NUM_THREADS := 1
test: $(READY)  ## the test suite
	@pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: export OMP_NUM_THREADS := 1
test-slow: $(READY)  ## tests of minutes each, which the suite leaves out
	@pytest -m slow

bench: $(READY)  ## time sampling and training on this machine; PROFILE=paper takes the published sizes
	@gtl bench $(if $(PROFILE),--profile $(PROFILE))

lint: $(READY)  ## style, types, layers
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports

ui: $(READY)  ## MLflow on http://127.0.0.1:5000, behind a password
	@python infra/ui.py

serve: $(READY)  ## Prefect server, tracker and a worker on loopback
	@python infra/serve.py

env: $(READY)

# torch's build for the CPU is taken where pip knows of an index or folder that has it, else the public index's, which
# brings CUDA. uv installs the rest in seconds. Nothing is installed whose hash does not stand in a lock; `uv pip check`
# says whether that was all. DVC's cache of hashes is moved out of /var/tmp, where every user may write what DVC unpickles
# (docs/security.md: Packages).
$(READY): requirements.lock requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@cp requirements.lock $(VENV)/all.lock
	@! $(PIP) -r requirements-cpu.lock 2>$(VENV)/cpu.log || \
		sed '/^\(torch==\|cuda-\|nvidia-\|triton==\)/,/[^\]$$/d' requirements.lock >$(VENV)/all.lock
	@sed -n '/^uv==/,/[^\]$$/p' requirements.lock >$(VENV)/uv.lock
	@$(PIP) -r $(VENV)/uv.lock
	@uv pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps --require-hashes -r $(VENV)/all.lock
	@uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@uv pip check --quiet --python $(BIN)/python
	@mkdir -p .dvc/tmp/site/repo && chmod 700 .dvc/tmp/site
	@dvc config --quiet --local core.site_cache_dir "$(CURDIR)/.dvc/tmp/site"
	@touch $@

lock: $(READY)  ## pin every package with its hashes; UPGRADE=--upgrade takes newer versions
	@sh infra/lock.sh $(UPGRADE)

clean-env:
	rm -rf $(VENV)
