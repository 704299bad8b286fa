# make repro    set up .venv, run the main job: every stage of dvc.yaml that is out of date
# make test     set up .venv, run all tests, with every notebook at smoke size
# make smoke    the whole pipeline at smoke size, pretraining included, in the folder smoke/
# make rebuild  everything from nothing, pretraining included: hours; an estimate first; killed, it goes on where it was
# make ablations   what each setting of the detector and of its rivals is worth, and AbC's own study: hours; an estimate first
# make paper    the paper's experiment on a GPU, with what params/paper.yaml names: days. PROFILE=paper_lvis, or one of your own
# make lock     resolve requirements.lock anew from pyproject.toml (needs uv)
PYTHON ?= python3
VENV ?= $(CURDIR)/.venv
READY := $(VENV)/.ready
PROFILE ?= paper

# Stages run in a shell that must find this environment's python.
export PATH := $(VENV)/bin:$(PATH)
.PHONY: repro test smoke rebuild ablations paper lock
.DEFAULT_GOAL := repro

repro: $(READY)
	$(VENV)/bin/dvc repro

# two files at a time, each with one thread: the smoke pipeline beside all else
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

smoke: $(READY)
	$(VENV)/bin/python -m ard.run --all --profile smoke

rebuild: $(READY)
	$(VENV)/bin/python -m ard.run --estimate
	$(VENV)/bin/python -m ard.run --all
	$(VENV)/bin/python -m ard.provenance
	$(VENV)/bin/dvc commit --force

ablations: $(READY)
	$(VENV)/bin/python -m ard.run --estimate ablations/dvc.yaml
	$(VENV)/bin/dvc repro ablations/dvc.yaml

paper: $(READY)
	$(VENV)/bin/python -m ard.run --all own/dvc.yaml --profile $(PROFILE)

lock:
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, not " + sys.version)'
	@if uv --version >/dev/null 2>&1; then \
	  echo "uv installs requirements.lock into $(VENV)"; \
	  uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" "$(VENV)" && \
	  uv pip install --quiet --compile-bytecode --python "$(VENV)/bin/python" -r requirements.lock && \
	  uv pip install --quiet --python "$(VENV)/bin/python" --no-deps --no-build-isolation -e .; \
	else \
	  echo "pip installs requirements.lock into $(VENV)"; \
	  $(PYTHON) -m venv "$(VENV)" && \
	  "$(VENV)/bin/python" -m pip install --quiet -r requirements.lock && \
	  "$(VENV)/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi
	@touch $@
