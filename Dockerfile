# The image of the pipeline's steps: longrec with all extras, and a checkout at /opt/longrec (`make images` prints the commands).
#
#     docker build --tag REGISTRY/longrec/python-ml:0.1.0 .
#     docker build --tag REGISTRY/longrec/python-ml:0.1.0-cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# Keep `python` in the name: kfp's local runner asks for it. Pin the base by digest where your registry mirrors it: --build-arg BASE=...
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE constraints.txt /src/
COPY model/longrec /src/model/longrec
COPY bento /src/bento
COPY components /src/components
COPY configs /src/configs
COPY feature_repo /src/feature_repo
COPY pipelines /src/pipelines
# torch for CPUs; an index of CUDA wheels for GPUs. The versions are those of constraints.txt either way.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /venv/bin/pip wheel --no-deps --wheel-dir /wheels /src \
 && /venv/bin/pip install --extra-index-url "${TORCH_INDEX}" --constraint /src/constraints.txt "$(echo /wheels/longrec-*.whl)[all,trainer,tune]"

FROM ${BASE}
# The user owns the places where Kubeflow's launcher puts artifacts, and nothing else: code is read-only.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin longrec \
 && mkdir --parents /gcs /s3 /minio /var/lib/longrec \
 && chown longrec:longrec /gcs /s3 /minio /var/lib/longrec
COPY --from=build /venv /venv
COPY --chmod=a+rX,go-w pyproject.toml README.md LICENSE /opt/longrec/
COPY --chmod=a+rX,go-w model/longrec /opt/longrec/model/longrec
COPY --chmod=a+rX,go-w feature_repo /opt/longrec/feature_repo
COPY --chmod=a+rX,go-w bento /opt/longrec/bento
COPY --chmod=a+rX,go-w components /opt/longrec/components
COPY --chmod=a+rX,go-w configs /opt/longrec/configs
COPY --chmod=a+rX,go-w pipelines /opt/longrec/pipelines
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    LONGREC_ROOT=/opt/longrec BENTOML_HOME=/tmp/bentoml BENTOML_DO_NOT_TRACK=True OMP_WAIT_POLICY=PASSIVE
USER 10001:10001
WORKDIR /tmp
