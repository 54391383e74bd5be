# `make train` or `make test` is all that a bare machine needs: Python 3.10+ with venv, g++, make.
PYTHON ?= python3
BIN := .venv/bin
# What decides the installed files: a change here installs again.
SETUP := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: train test lint docs bench clean

train: .venv/train.stamp
	ssl-fast train --method resa --data digits $(ARGS)

test: .venv/test.stamp
	pytest -m "not slow and not interpreter" $(ARGS)

lint: .venv/test.stamp
	pre-commit run --all-files --show-diff-on-failure

docs: .venv/docs.stamp
	mkdocs build --strict

bench: .venv/test.stamp
	ssl-fast bench $(ARGS)

clean:
	rm -rf .venv build dist site ssl_fast.egg-info ssl_fast/_build.json ssl_fast/*.so

.venv/train.stamp: EXTRAS := train
.venv/test.stamp: EXTRAS := train,test
.venv/docs.stamp: EXTRAS := docs
.venv/%.stamp: $(SETUP) | $(BIN)/pip
	$(BIN)/python -m pip install -e ".[$(EXTRAS)]"
	$(BIN)/python -m ssl_fast.info
	touch $@

$(BIN)/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
