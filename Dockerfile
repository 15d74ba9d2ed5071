# The image that charts/ztunnel runs. It needs no shell and writes nothing: the chart's root file system is read-only.
#
#   docker build --build-arg ISTIO_VERSION=1.31.0 -t <hub>/ztunnel:<tag> .
#
# tests/e2e/image.py carries these steps out without a container engine, and tests/e2e/test_chart.py runs the outcome.

ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements-build.lock requirements-runtime.lock ./
RUN python -m pip install --no-cache-dir --root-user-action=ignore --require-hashes -r requirements-build.lock
RUN python -m pip install --no-cache-dir --root-user-action=ignore --require-hashes --only-binary :all: --prefix /install -r requirements-runtime.lock
COPY pyproject.toml README.md ./
COPY ztunnel ztunnel
RUN python -m pip install --no-cache-dir --root-user-action=ignore --no-deps --no-index --no-build-isolation --prefix /install .

FROM ${PYTHON_IMAGE}
ARG ISTIO_VERSION=unknown
ENV ISTIO_META_ISTIO_VERSION=${ISTIO_VERSION}
# Modules were compiled when they were installed; what is not, cannot be written here.
ENV PYTHONDONTWRITEBYTECODE=1
COPY --from=build /install /usr/local
WORKDIR /
ENTRYPOINT ["/usr/local/bin/ztunnel"]
