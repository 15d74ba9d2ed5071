# The image that charts/ztunnel runs. It needs no shell and writes nothing: the chart's root file system is read-only.
#
#   docker build --build-arg ISTIO_VERSION=1.31.0 --build-arg VERSION=1.2.3 -t <hub>/ztunnel:<tag> .
#
# tests/support/image.py carries these steps out without a container engine, and tests/e2e/test_chart.py runs the outcome.

ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm
# The same Python, with a compiler where the base cannot get one (scripts/base-image makes such a pair).
ARG BUILD_IMAGE=${PYTHON_IMAGE}

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY requirements-build.lock requirements-runtime.lock ./
RUN python -m pip install --no-cache-dir --root-user-action=ignore --require-hashes -r requirements-build.lock
RUN python -m pip install --no-cache-dir --root-user-action=ignore --no-compile --require-hashes --only-binary :all: --prefix /install -r requirements-runtime.lock
# For the compiled part of TLS. Where no compiler can be had (ACCELERATOR=auto), the image is pure Python.
ARG ACCELERATOR=auto
ENV ZTUNNEL_BUILD_ACCELERATOR=${ACCELERATOR}
RUN command -v cc || { apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev; } || [ "$ZTUNNEL_BUILD_ACCELERATOR" != require ]
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY ztunnel ztunnel
# There is no git here to ask.
ARG VERSION=0.0.0
ENV SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION}
RUN python -m pip install --no-cache-dir --root-user-action=ignore --no-compile --no-deps --no-index --no-build-isolation --prefix /install .
# What packages bring and running does not need: their tests, stubs, C sources, tools, time zones.
RUN find /install -depth \( -type d -name _tests -o -type d -name zoneinfo -o -name '*.pyi' -o -name '*.[ch]' -o -name '*.pyx' -o -name '*.pxd' \) -exec rm -rf {} + \
 && find /install/bin -type f ! -name ztunnel -delete && rm -rf /install/share /install/include
# Bytecode that does not depend on the time of the build, and that a start takes without a look at its source.
RUN python -m compileall -q --invalidation-mode unchecked-hash -s /install -p /usr/local /install/lib

FROM ${PYTHON_IMAGE}
ARG ISTIO_VERSION=unknown
ENV ISTIO_META_ISTIO_VERSION=${ISTIO_VERSION}
COPY --from=build /install /usr/local
# Packages are compiled. The standard library of the official image is not: what a start loads of it
# is compiled here, since nothing can be written later. Without this a start takes twice the CPU time.
# What the base brings for those who install packages or write programs is taken away.
RUN python -c "import ztunnel.start, ztunnel.cli, ztunnel.app, dns.message" \
 && cd /usr/local && rm -rf include bin/pip* bin/idle* bin/pydoc* bin/2to3* bin/python*-config bin/python*-gdb.py \
 && cd lib/python3.* && rm -rf ensurepip idlelib lib2to3 pydoc_data turtledemo config-* site-packages/pip site-packages/pip-*
ENV PYTHONDONTWRITEBYTECODE=1
WORKDIR /
ENTRYPOINT ["/usr/local/bin/ztunnel"]
