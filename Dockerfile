# GPUs: NVIDIA's PyTorch image brings CUDA, NCCL, Transformer Engine and Apex; the project comes on top (docs/containers.md).
#   docker build -t megatron_cod .
#   examples/docker/run.sh --tensor-model-parallel-size 8
ARG BASE=nvcr.io/nvidia/pytorch:25.10-py3
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /workspace

# What the base brings or holds fast (PIP_CONSTRAINT of NVIDIA's images) is left alone, torch above all; only what it lacks
# is installed, as requirements.docker.txt pins it. This layer stays while the code changes.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG MEGATRON_CORE=0.19.2
COPY requirements.docker.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip list --format=freeze > /tmp/brought.txt \
    && sed -n 's/^\([[:alnum:]][[:alnum:]._-]*\).*/^\1==/p' /tmp/brought.txt "${PIP_CONSTRAINT:-/dev/null}" > /tmp/held.txt \
    && { grep -vif /tmp/held.txt requirements.docker.txt > /tmp/pins.txt; \
         grep -i '^torch==' /tmp/brought.txt >> /tmp/pins.txt || { echo "the base image brings no torch" >&2; exit 1; }; } \
    && sed -n 's/==.*//p' requirements.docker.txt > /tmp/names.txt \
    && python3 -m pip install --no-deps "megatron-core==$MEGATRON_CORE" \
    && python3 -m pip install --constraint /tmp/pins.txt --requirement /tmp/names.txt \
    && rm /tmp/brought.txt /tmp/held.txt /tmp/pins.txt /tmp/names.txt

# Not root at run time. Another user may be named (docker run --user): it needs no account here, and caches go to /tmp.
RUN useradd --no-create-home --uid 10001 trainer && install -d -o trainer runs
ENV HOME=/tmp PYTHONPATH=/workspace${PYTHONPATH:+:$PYTHONPATH}

COPY LICENSE ./
COPY recipes recipes
COPY examples examples
COPY tools tools
COPY megatron_cod megatron_cod
USER 10001
CMD ["python3", "-m", "megatron_cod.training.pretrain", "--help"]
