# Everything is set up by the target that needs it, each in a virtual environment of its own:
#   .venv       the server, with what imports scikit-learn pipelines
#   .venv-demo  trains the demo model (its data package is GPL-3, so it stays out of the server's environment)
#   .venv-build builds what is published, into dist/
#   .venv-test  the published server, the test tools
#   .venv-wheel the same, made anew with binary packages alone and no compiler on the path
#   .venv-load  Locust (gevent stays out of the server's environment)
PYTHON ?= python3
PORT ?= 8000
SECONDS ?= 60
PIP = -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find fastinfer -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi') setup.py pyproject.toml
export PYTHONDONTWRITEBYTECODE =

# The packages of an extra that go without the server.
extra = $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])")
CORE_TESTS = tests/test_core_*.py tests/test_batcher.py tests/test_batcher_histories.py tests/test_heads.py

.PHONY: serve triton wheel test real-triton test-debug test-sanitize test-wheel fuzz lint loadtest bench clean prerequisites ready
.DELETE_ON_ERROR:

serve: .venv/ready .demo/models/credit/1/model.onnx  ## serve the demo model
	.venv/bin/fastinfer serve .demo/models --port $(PORT)

triton: .venv/ready .demo/pipeline.joblib real-triton  ## the credit model's features here, its network in Triton
	.venv/bin/python $(PIP) $(call extra,triton)
	.venv/bin/python examples/triton/serve.py --port $(PORT)

wheel: dist/ready  ## the sdist and the repaired wheel, in dist/

test:  ## everything that CI checks: lint, types, the core under the sanitizers, the whole suite, the wheel
	$(MAKE) --no-print-directory -j $$(nproc) ready lint build/sanitize/ready build/fuzz/ready .venv-wheel/ready
	$(MAKE) --no-print-directory test-sanitize
	.venv-test/bin/python scripts/run_tests.py
	.venv-test/bin/python scripts/run_tests.py --uvicorn
	$(MAKE) --no-print-directory test-wheel
	$(MAKE) --no-print-directory fuzz

test-debug: ready build/debug/ready  ## the suite on the build with bounds checks
	.venv-test/bin/python scripts/run_tests.py --build debug

test-sanitize: .venv-test/ready build/sanitize/ready  ## the core's tests under the address and undefined-behaviour sanitizers
	.venv-test/bin/python scripts/run_tests.py --build sanitize $(CORE_TESTS)

test-wheel: .venv-wheel/ready  ## the quick part of the suite in an environment without a compiler
	PATH="$(CURDIR)/.venv-wheel/bin" .venv-wheel/bin/python scripts/run_tests.py --quick

fuzz: .venv-test/ready build/fuzz/ready  ## what clients send, under libFuzzer and the sanitizers, for SECONDS=60
	.venv-test/bin/python tests/fuzz/run.py --seconds $(SECONDS)

ready: .venv-test/ready .venv-load/ready .demo/models/credit/1/model.onnx real-triton

# The tests that need it skip, and say so, where it cannot be had.
real-triton: .venv/ready  ## the real Triton, for tests and the example, in an environment of its own
	-.venv/bin/python bench/triton_server.py

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" cython-lint fastinfer  # it calls pycodestyle by name
	.venv-test/bin/mypy

loadtest: .venv/ready .venv-load/ready .demo/models/credit/1/model.onnx  ## Locust against the demo model, judged by targets.toml
	.venv-load/bin/python loadtests/verify.py --model-repository .demo/models --server-python .venv/bin/python

bench: .venv/ready  ## every target of speed, fastinfer beside its peers; installs them under .bench
	.venv/bin/python bench/table.py

prerequisites:
	sh scripts/prerequisites.sh $(PYTHON)

.venv/ready: $(SOURCES) | prerequisites
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) '.[sklearn]'
	touch $@

.venv-build/ready: pyproject.toml | prerequisites
	test -x .venv-build/bin/python || $(PYTHON) -m venv .venv-build
	.venv-build/bin/python $(PIP) $(call extra,build)
	touch $@

dist/ready: $(SOURCES) MANIFEST.in README.md LICENSE NOTICE .venv-build/ready scripts/build_wheel.py
	FASTINFER_WERROR=1 .venv-build/bin/python scripts/build_wheel.py
	touch $@

.venv-test/ready: dist/ready
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP) "$$(ls dist/*.whl)[test,fuzz]"
	.venv-test/bin/python $(PIP) --force-reinstall --no-deps dist/*.whl
	touch $@

# A core with checks, beside the installed package that it stands in for.
build/%/ready: dist/ready .venv-test/ready
	rm -rf build/$*
	FASTINFER_BUILD=$* FASTINFER_WERROR=1 .venv-test/bin/python $(PIP) --no-cache-dir --no-deps --no-build-isolation --target build/$* dist/*.tar.gz
	touch $@

.venv-wheel/ready: dist/ready
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	PATH="$(CURDIR)/.venv-wheel/bin" .venv-wheel/bin/python $(PIP) --only-binary :all: "$$(ls dist/*.whl)[test]"
	touch $@

.venv-load/ready: pyproject.toml | prerequisites
	test -x .venv-load/bin/python || $(PYTHON) -m venv .venv-load
	.venv-load/bin/python $(PIP) $(call extra,load)
	touch $@

.demo/pipeline.joblib: examples/credit/train.py examples/credit/requirements.txt | .venv/ready
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv/bin/python -m pip list --format freeze | grep -i '^scikit-learn==' > .venv-demo/constraints.txt
	.venv-demo/bin/python $(PIP) -r examples/credit/requirements.txt -c .venv-demo/constraints.txt
	.venv-demo/bin/python examples/credit/train.py --out .demo

.demo/models/credit/1/model.onnx: .demo/pipeline.joblib
	rm -rf .demo/models
	.venv/bin/fastinfer import .demo/pipeline.joblib --out .demo/models/credit/1 --sample .demo/sample.parquet --trust-pickle

clean:
	rm -rf .venv .venv-build .venv-demo .venv-load .venv-test .venv-wheel .demo .bench build dist *.egg-info
