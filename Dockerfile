# GPUs: NVIDIA's PyTorch image brings CUDA, NCCL, Transformer Engine and Apex; the project comes on top, torch stays theirs.
ARG BASE=nvcr.io/nvidia/pytorch:25.10-py3
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /workspace

# The dependencies first: their layer stays while the code changes. torch and triton are the image's own.
COPY requirements.docker.txt ./
RUN python3 -m pip install --no-deps megatron-core==0.19.2 \
    && python3 -m pip install -r requirements.docker.txt

COPY pyproject.toml setup.py README.md LICENSE ./
COPY megatron_cod megatron_cod
RUN python3 -m pip install --no-deps .

COPY recipes recipes
COPY examples examples
COPY tools tools

# Not root at run time; docker/run.sh names the caller's own user over it.
RUN useradd --create-home --uid 10001 trainer && mkdir -p runs && chown trainer runs
USER 10001
CMD ["python3", "-m", "megatron_cod.training.pretrain", "--help"]
