# make serve [MODEL=folder]   distil the miniature student if need be, serve it (or MODEL), print how to ask it
# make test                   every check and test; CI calls this and nothing else
# make test-vllm VLLM=0.31.0  the gains' tests with another version of vLLM, in an environment of its own
# make reproduce              LAid, its rivals and its ablations, trained and measured: hours
# make test-reproduce         a short form of it, in minutes
# make check                  ruff and mypy alone
# make bench [QUICK=1]        every benchmark; figures into runs/bench
# make try-images             builds the images and runs deploy/compose.yaml without Docker, as root
# make install                the virtual environment alone
# make build-miniature        retrain the committed teacher and base student (about an hour)
SHELL := /bin/sh
RUN ?= runs/miniature
STUDENT := $(RUN)/student
PORT ?= 8000
PY := .venv/bin/python

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: serve test test-vllm test-reproduce reproduce check bench install student try-images build-miniature clean

ifdef MODEL
serve: install
	@exec .venv/bin/laid-serve $(MODEL) --port $(PORT)
else
serve: install student
	@exec .venv/bin/laid-serve $(STUDENT) --port $(PORT)
endif

# The measured window is part of the student: the gateway reads it from the checkpoint.
student: install $(RUN)/evaluation/report.json

# One thread: models this small are faster so, and much faster where the second core is busy.
$(RUN)/evaluation/report.json test test-vllm test-reproduce reproduce: export OMP_NUM_THREADS = 1

$(RUN)/evaluation/report.json:
	@$(PY) -m distill train distill/recipes/miniature.yaml output=$(RUN) --resume
	@$(PY) -m distill evaluate $(STUDENT) --out $(RUN)/evaluation --resume

install: .venv/installed

.venv/installed: pyproject.toml deploy/install.sh
	@deploy/install.sh
	@touch .venv/installed

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: check
	@tests/install_programs.sh
	@tests/server/conformance/node/install.sh
	$(PY) -m pytest

test-vllm:
	@test -n "$(VLLM)" || { echo "VLLM: missing, expected a version, such as: make test-vllm VLLM=0.31.0" >&2; exit 2; }
	VENV=.venv-$(VLLM) deploy/install.sh
	.venv-$(VLLM)/bin/python -m pytest tests/rope_gain

reproduce: install
	$(PY) -m distill reproduce --jobs 2

test-reproduce: install
	$(PY) -m pytest -m experiment

# All of benchmarks/ but what they import; of the soak, which takes half an hour, the short form alone.
bench: install
	@for name in $(filter-out common attention_matching_gpu $(if $(QUICK),,soak),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
		echo "== benchmarks/$$name.py"; \
		$(PY) benchmarks/$$name.py $(if $(QUICK),--quick) --json runs/bench/$$name.json || exit 1; \
	done

try-images: install
	$(PY) deploy/try_images.py --engine

build-miniature: install
	$(PY) -m distill miniature build

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
