# Every target does its own set-up in .venv on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow conformance lint zoo bench accelerators browser clean

demo: $(VENV)/.runtime
	$(BIN)/shadownet demo

test: lint
	$(BIN)/pytest tests/test_tiny.py
	$(BIN)/pytest -n auto -m "not slow"

slow: $(VENV)/.dev
	$(BIN)/pytest -n auto -m slow

# Every backend that is there, each op of it; `make accelerators` brings two more.
conformance: $(VENV)/.dev
	$(BIN)/pytest -n auto -m slow tests/test_backends.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

zoo: $(VENV)/.zoo

bench: $(VENV)/.zoo
	$(BIN)/python tools/benchmarks.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shadownet needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[attacks]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.zoo: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[zoo]'
	touch $@

# For the tests of tflite-runtime (needs Python 3.11) and of litert-gpu (a Vulkan driver in software, from Debian).
accelerators: $(VENV)/.tflite-runtime $(VENV)/.swiftshader

$(VENV)/.tflite-runtime: $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/tflite-runtime
	$(VENV)/tflite-runtime/bin/python -m pip install --quiet --disable-pip-version-check 'tflite-runtime==2.14.0' 'numpy<2'
	touch $@

$(VENV)/.swiftshader: $(VENV)/bin/python
	mkdir -p $(VENV)/swiftshader
	cd $(VENV)/swiftshader && apt-get download chromium-common libvulkan1
	cd $(VENV)/swiftshader && for package in *.deb; do dpkg -x "$$package" . && rm "$$package"; done
	touch $@

# For the tests of the report's page: a browser from Debian, and what drives it.
browser: $(VENV)/.browser

$(VENV)/.browser: $(VENV)/.dev
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -q -y chromium fonts-dejavu; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'playwright>=1.45'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo
