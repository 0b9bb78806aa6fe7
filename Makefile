# Everything is set up by the target that needs it, each in a virtual environment of its own:
#   .venv       the server, with what imports scikit-learn pipelines
#   .venv-demo  trains the demo model (its data package is GPL-3, so it stays out of the server's environment)
#   .venv-test  the server, the test tools
#   .venv-load  Locust (gevent stays out of the server's environment)
PYTHON ?= python3
PORT ?= 8000
PIP = -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find fastinfer -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi') setup.py pyproject.toml
export PYTHONDONTWRITEBYTECODE =

.PHONY: serve test test-debug lint loadtest bench clean
.DELETE_ON_ERROR:

serve: .venv/ready .demo/models/credit/1/model.onnx  ## serve the demo model
	.venv/bin/fastinfer serve .demo/models --port $(PORT)

test: .venv-test/ready .venv-load/ready .demo/models/credit/1/model.onnx lint  ## everything that CI checks: lint, types, the core with bounds checks on, the whole suite
	.venv-test/bin/python scripts/run_tests.py --build debug tests/test_core_*.py tests/test_batcher.py tests/test_heads.py
	.venv-test/bin/python scripts/run_tests.py
	.venv-test/bin/python scripts/run_tests.py --uvicorn

test-debug: .venv-test/ready .venv-load/ready .demo/models/credit/1/model.onnx  ## the suite on the build with bounds checks
	.venv-test/bin/python scripts/run_tests.py --build debug

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" cython-lint fastinfer  # it calls pycodestyle by name
	.venv-test/bin/mypy

loadtest: .venv/ready .venv-load/ready .demo/models/credit/1/model.onnx  ## Locust against the demo model, judged by targets.toml
	.venv-load/bin/python loadtests/verify.py --model-repository .demo/models --server-python .venv/bin/python

bench: .venv/ready  ## every target of speed, fastinfer beside its peers; installs them under .bench
	.venv/bin/python bench/table.py

.venv/ready: $(SOURCES)
	sh scripts/prerequisites.sh $(PYTHON)
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) '.[sklearn]'
	touch $@

.venv-test/ready: $(SOURCES)
	sh scripts/prerequisites.sh $(PYTHON)
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	FASTINFER_WERROR=1 .venv-test/bin/python $(PIP) '.[test]'
	touch $@

.venv-load/ready: pyproject.toml
	sh scripts/prerequisites.sh $(PYTHON)
	test -x .venv-load/bin/python || $(PYTHON) -m venv .venv-load
	.venv-load/bin/python $(PIP) $$(.venv-load/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['load'])")
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
	rm -rf .venv .venv-demo .venv-test .venv-load .demo .bench build *.egg-info
