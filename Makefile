# Two commands to know: make quickstart, make test. Each prepares .venv first, and says what it does.
PYTHON ?=
BIN := .venv/bin
# Four test files at a time: most tests wait for processes of their own. The fixtures of a file stay with one worker.
WORKERS := --numprocesses 4 --dist loadfile
FAST := not slow and not launch and not containers and not campaign and not cuda and not cuda_te
# The CUDA path without a GPU: the command that follows runs on emulated devices (tests/gpu_emulation).
ON_CUDA := $(BIN)/python -m tests.gpu_emulation $(BIN)/python -m pytest $(WORKERS) tests/cuda
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
export PYTHON

.PHONY: help quickstart gpu-proof test test-cuda test-cuda-te test-wheel test-slow test-kills test-launch test-containers benchmark site check format venv clean

help:
	@echo 'make quickstart   train LNS and two Pre-LN arms at two learning rates over a pipeline of CPU processes; table and figure'
	@echo 'make test         one or two cases of most kinds of test (real processes over gloo)'
	@echo 'make test-cuda    the CUDA path on emulated devices, all of it (g++; no GPU needed)'
	@echo 'make test-cuda-te  the real Transformer Engine on emulated devices (g++, 300 MB; builds it once: 3 minutes; then about 10)'
	@echo 'make test-wheel   builds wheel and sdist, installs the wheel elsewhere and runs the first commands (5 minutes)'
	@echo 'make test-slow    all other cases, and the kinds that are slow as a whole: longer runs, killed ranks'
	@echo 'make test-kills   50 random kills of a run (15 minutes)'
	@echo 'make test-launch  hosts in network namespaces and a real Slurm (root; apt install slurm-wlm munge faketime)'
	@echo 'make test-containers  builds and runs both images (Debian: apt install buildah mmdebstrap docker.io slurm-wlm libslurm-dev)'
	@echo 'make benchmark    training and evaluation against transformers: the table of docs/benchmarks.md (40 minutes)'
	@echo 'make gpu-proof    on a machine with a GPU: its tests, step times, a training, the depth study (25 minutes)'
	@echo 'make site         the documentation as HTML: site/index.html'
	@echo 'make check        ruff, mypy, import contracts; words, links and commands of the docs; the site builds'
	@echo 'make format       rewrite the code as ruff wants it'
	@echo 'make venv         only prepare .venv'

venv:
	@tools/make_venv.sh $(MAKECMDGOALS)

quickstart: venv
	$(BIN)/python examples/quickstart.py

test: venv .venv/transformer_engine/.installed
	$(BIN)/python -m pytest $(WORKERS) -m '$(FAST)'
	MEGATRON_COD_TE=emulated $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m '$(FAST)' tests/te
	$(ON_CUDA) -m 'not slow'

test-cuda: venv
	$(ON_CUDA)

test-cuda-te: venv
	$(BIN)/python tests/gpu_emulation/transformer_engine/build.py
	$(BIN)/python -m tests.gpu_emulation.transformer_engine $(BIN)/python -m pytest $(WORKERS) tests/cuda_te

# Transformer Engine's Python code, for tests/te: beside the environment, where only those tests see it.
.venv/transformer_engine/.installed: tests/te/requirements.txt | venv
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) -r $<
	@touch $@

test-slow: venv .venv/transformer_engine/.installed
	$(BIN)/python -m pytest $(WORKERS) -m 'slow and not cuda and not cuda_te'
	MEGATRON_COD_TE=emulated $(BIN)/python -m pytest $(WORKERS) -m slow tests/te

test-wheel: venv
	$(BIN)/python -m pytest tests/packaging

test-kills: venv
	$(BIN)/python -m pytest -m campaign

test-launch: venv
	$(BIN)/python -m pytest -m launch

test-containers: venv
	$(BIN)/python -m pytest -m containers -s

gpu-proof: venv
	$(BIN)/python tools/gpu_proof.py

benchmark: venv
	$(BIN)/python -m megatron_cod benchmark table

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m 'not slow' tests/docs tests/test_repository.py
	$(SITE)

# The documentation as pages: open site/index.html.
site: venv
	$(SITE)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build dist *.egg-info
