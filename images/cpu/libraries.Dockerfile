# What the synthesizer and the trainer need on a CPU, for both in one layer: torch, vLLM's CPU build, DeepSpeed.
#   docker build -f images/cpu/libraries.Dockerfile -t instructpt/cpu-libraries .      (from the root of the repository)
# The images themselves are then built on it: see images/README.md.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="instructpt CPU libraries" \
      org.opencontainers.image.description="torch, vLLM and DeepSpeed for CPUs, under the CPU images of instructpt"
COPY images/cpu/requirements.lock images/cpu/cuda_stand_ins.py /opt/libraries/
# vLLM's CPU build loads libnuma.so.1. The package index has torch for CUDA alone: its CUDA libraries, 2.7 GB that a CPU
# never calls, are left out, all but the small runtime, and binutils makes stand-ins for them. DeepSpeed ships as source
# and is built with the setuptools of the lock; with its operators left out it needs no compiler.
RUN apt-get update && \
    apt-get install -y --no-install-recommends binutils libnuma1 && \
    python3 -m venv /opt/instructpt && \
    grep '^setuptools==' /opt/libraries/requirements.lock > /opt/libraries/build.lock && \
    /opt/instructpt/bin/pip install --disable-pip-version-check --no-cache-dir --no-deps \
        --require-hashes -r /opt/libraries/build.lock && \
    DS_BUILD_OPS=0 /opt/instructpt/bin/pip install --disable-pip-version-check --no-cache-dir --no-deps \
        --no-build-isolation --require-hashes -r /opt/libraries/requirements.lock && \
    python3 /opt/libraries/cuda_stand_ins.py /opt/instructpt/lib/python3.11/site-packages && \
    apt-get purge -y --auto-remove binutils && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/*.log /tmp/*
ENV PATH=/opt/instructpt/bin:$PATH
