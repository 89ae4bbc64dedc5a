# Needs Python >= 3.10 with pip and venv, nothing else: every target installs what it uses into $(VENV).
# Each stamp file in $(VENV) stands for one finished install, so a second run installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One resolution with torch in it, always under the tested versions; a newer torch would not fit torchvision.
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
PYTEST_ARGS ?=
# Seconds that each process of `make test` gives to tests marked slow; it skips the others. inf: all of them.
SLOW_SECONDS ?= 10
# In the environment $(1). One thread a process: no contention.
pytest = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal --slow-seconds $(SLOW_SECONDS) $(PYTEST_ARGS)
# Not empty: without torch-cluster and torch-scatter `make test` fails instead of skipping their tests.
REQUIRE_CLUSTER ?=

.PHONY: help demo test test-oldest lint docs gallery notebooks readme dist bench truth clean
.NOTPARALLEL:  # two pip processes must not write to one environment

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp  ## make and coarsen a graph of a photograph's tokens; run a faster model
	$(BIN)/python -m tokengraph demo

test: $(VENV)/test.stamp $(VENV)/cluster.stamp  ## the tests, slow ones for 10 seconds a core; SLOW_SECONDS=inf for all
	@grep -qx ok $(VENV)/cluster.stamp || { \
	  echo "torch-cluster or torch-scatter did not install or import: the reason stands in that install's output."; \
	  echo "Tests that need them are skipped. To try again: rm $(VENV)/cluster.stamp && make test"; \
	  test -z "$(REQUIRE_CLUSTER)"; }
	$(call pytest,$(VENV))

# The oldest versions stand in pyproject.toml; the rest as tested, in an environment of its own. The oldest torch is not
# among them: its wheels bring gigabytes of CUDA, and the tested torchvision, onnx and torch-cluster do not fit it.
OLDEST := sed -nE 's/^(timm|transformers) = \["[a-z]+>=(.*)"\]$$/\1==\2/p; s/.*"(torch-geometric)>=([0-9.]+)".*/\1==\2/p'
test-oldest:  ## these tests with the oldest timm, transformers and PyG that are supported
	$(MAKE) VENV=$(VENV)-oldest $(VENV)-oldest/test.stamp $(VENV)-oldest/cluster.stamp
	$(VENV)-oldest/bin/python -m pip install $$($(OLDEST) pyproject.toml)
	$(call pytest,$(VENV)-oldest)

lint: $(VENV)/test.stamp  ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/docs.stamp  ## the documentation site, into outputs/site/; fails for dead links and references
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open outputs/site/index.html"

readme: $(VENV)/docs.stamp  ## write the tables of the README that depend on results
	$(BIN)/python -m website.readme

gallery: $(VENV)/test.stamp  ## draw every strategy on three photographs by a real ViT-S/14, into docs/gallery/
	$(BIN)/python benchmarks/truth fetch
	$(BIN)/python benchmarks/gallery.py

notebooks: $(VENV)/test.stamp  ## run the notebooks and keep their outputs
	$(BIN)/python benchmarks/truth fetch
	TRUTH_DATA=$${TRUTH_DATA:-truth-data} $(BIN)/python -m website.notebooks

# Wheel and source package; the wheel then runs the quickstart in an environment that has nothing else of this checkout.
dist: $(VENV)/dist.stamp  ## build and check the packages that a release would upload; nothing is uploaded
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist

bench: $(VENV)/demo.stamp $(VENV)/cluster.stamp  ## merge cost and end-to-end speed on this machine, the quick form
	$(BIN)/python benchmarks/merge_cost.py --quick
	$(BIN)/python benchmarks/end_to_end.py --quick

# Stopped, it goes on where it was. Two processes may share the work: TRUTH="frontier --tasks scenes", for example.
TRUTH ?= all
truth: $(VENV)/test.stamp  ## accuracy of every strategy on real features (hours; resumes); TRUTH="fetch" for data alone
	$(BIN)/python benchmarks/truth $(TRUTH)

clean:  ## remove the environment, caches and outputs
	rm -rf $(VENV) $(VENV)-oldest build dist *.egg-info outputs .pytest_cache .ruff_cache
	find tokengraph tests benchmarks examples website -name __pycache__ -prune -exec rm -rf {} +

# An environment without pip is one whose making failed halfway: make it again.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# No compiler needed up to here: torch-cluster and torch-scatter stay out.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[timm,viz,cli]'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(INSTALL) --editable '.[timm,transformers,onnx,viz,cli,test]'
	touch $@

$(VENV)/docs.stamp: $(VENV)/demo.stamp
	$(INSTALL) --editable '.[timm,docs]'
	touch $@

$(VENV)/dist.stamp: $(VENV)/demo.stamp
	$(INSTALL) setuptools build twine
	touch $@

# Both are source packages whose build imports torch: hence after torch, and without build isolation. Wheels found
# through PIP_FIND_LINKS are taken instead. Their setup.py compiles one file at a time, many minutes in all: build.cfg
# lets it compile MAX_JOBS (all cores), but not with CUDA, where threads would swap each other's compiler. Only an
# import shows that the result fits this torch. A failed try leaves its stamp too, so as not to be repeated each time.
$(VENV)/cluster.stamp: $(VENV)/demo.stamp
	$(INSTALL) setuptools wheel
	$(BIN)/python -c 'import os; from torch.utils.cpp_extension import CUDA_HOME as cuda; \
	  print("[build_ext]\nparallel =", 1 if cuda else os.environ.get("MAX_JOBS") or os.cpu_count())' > $(VENV)/build.cfg
	@status=failed; \
	if DIST_EXTRA_CONFIG=$(abspath $(VENV)/build.cfg) $(INSTALL) --no-build-isolation torch-cluster torch-scatter \
	  && $(BIN)/python -W ignore -c 'import torch_cluster, torch_scatter'; then status=ok; fi; \
	echo $$status > $@
