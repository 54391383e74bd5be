# `make train` or `make test` is all that a bare machine needs: Python 3.10+ with venv, g++, make.
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")
# What decides the installed files: a change here installs again.
SETUP := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)

# Debian ships Python.h in a package of its own; unpacked below, it needs no root.
HEADERS := $(CURDIR)/.venv/headers/usr/include
export CPATH := $(HEADERS)/python$(VERSION):$(HEADERS)$(if $(CPATH),:$(CPATH))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: train test lint docs bench wheel wheels clean

train: .venv/train.stamp
	ssl-fast train --method resa --data digits $(ARGS)

# Workers that wait without spinning, so that they do not take each other's cores.
test: .venv/test.stamp
	OMP_WAIT_POLICY=passive pytest -q -n auto -m "not slow and not interpreter and not aot" $(ARGS)

lint: .venv/test.stamp
	pre-commit run --all-files --show-diff-on-failure

docs: .venv/docs.stamp
	mkdocs build --strict

bench: .venv/test.stamp
	ssl-fast bench $(ARGS)

# The sdist, and from it a wheel for this Python and machine, with CUDA where nvcc is.
wheel: .venv/release.stamp
	rm -rf dist
	python -m build --outdir dist
	twine check --strict dist/*

# For each Python that pyproject.toml names, in containers: needs Docker or Podman.
wheels: .venv/release.stamp
	rm -rf dist
	python -m build --sdist --outdir dist
	cibuildwheel --output-dir dist dist/*.tar.gz
	twine check --strict dist/*

clean:
	rm -rf .venv build dist site ssl_fast.egg-info ssl_fast/_build.json ssl_fast/*.so

.venv/train.stamp: EXTRAS := train
.venv/test.stamp: EXTRAS := train,test
.venv/docs.stamp: EXTRAS := docs
.venv/release.stamp: EXTRAS := release
.venv/%.stamp: $(SETUP) | .venv/created
	python -m pip install -e ".[$(EXTRAS)]"
	python -m ssl_fast.info
	touch $@

.venv/created:
	$(PYTHON) -m venv .venv
	python -m pip install --upgrade pip
	test -e "$$(python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" \
	  || (cd .venv && apt-get download libpython$(VERSION)-dev && dpkg -x libpython*-dev_*.deb headers) \
	  || echo "Python.h is missing: without python3-dev the C++ kernels are left out"
	touch $@
