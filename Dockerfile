# The web application in a container, for NVIDIA cards or for the CPU alone:
#
#     docker build --tag liveavatar .
#     docker build --tag liveavatar:cpu --build-arg BASE=cpu .
#
# compose.yaml starts either of them.
ARG BASE=gpu

# Serves CUDA 12.2, which is what the oldest driver that is supported (535.104.05) serves too. Torch
# brings the CUDA libraries it was built for along.
FROM nvidia/cuda:12.2.2-runtime-ubuntu22.04 AS gpu
FROM ubuntu:22.04 AS cpu

FROM ${BASE}
# Python 3.10; tini ends what a rank leaves behind.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 avatar \
    && mkdir --parents /app /data /checkpoints \
    && chown avatar:avatar /app /data /checkpoints
USER avatar
WORKDIR /app

# The environment first: it changes less often than the code. An index that has another build of torch,
# such as the one for CPUs (3 GB less) or for an older CUDA, comes by --build-arg PIP_EXTRA_INDEX_URL.
ARG PIP_EXTRA_INDEX_URL=
COPY --chown=avatar:avatar requirements.txt ./
COPY --chown=avatar:avatar scripts/venv.sh scripts/
RUN ["/bin/bash", "-c", "set -euo pipefail; export PIP_NO_CACHE_DIR=1; . scripts/venv.sh; ensure_venv requirements.txt"]

# What else .dockerignore lets through.
COPY --chown=avatar:avatar . ./

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CUDA_DEVICE_ORDER=PCI_BUS_ID \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# /data keeps jobs and videos; weights are mounted below /checkpoints, read-only.
VOLUME ["/data", "/checkpoints"]
EXPOSE 7860

# 200 also where others have to log in; 503 means that nothing is rendered.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "scripts/healthcheck.py"]

# Others than this container reach it, so it does not start without LIVEAVATAR_AUTH=USER:PASSWORD, or
# --allow-open.
ENTRYPOINT ["tini", "--", "python", "app.py", "--host", "0.0.0.0", "--port", "7860", "--data-dir", "/data"]
CMD ["--model", "demo"]
