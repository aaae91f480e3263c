# The command `wsi` in a container; docs/guides/servers.md shows how it is run.
#
#   docker build --target cuda --tag wsi .    for GPUs
#   docker build --target cpu --tag wsi .     for machines without one
#
# The base holds no CUDA: the ordinary torch of PyPI brings CUDA's libraries, and the host its driver.
# Both targets have that torch (its CPU-only build does not go with torchvision from PyPI) and share
# every layer but the last: cpu adds OpenVINO, cuda adds dask-cuda.

FROM python:3.12-slim-trixie AS wheel
COPY pyproject.toml README.md LICENSE /src/
COPY wsi_pipeline /src/wsi_pipeline
COPY cli /src/cli
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /src

FROM python:3.12-slim-trixie AS base
LABEL org.opencontainers.image.title="wsi-pipeline" \
      org.opencontainers.image.description="Whole-slide images to heatmaps; for research, not for diagnosis" \
      org.opencontainers.image.licenses="MIT"
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[dicom,export,timm]"
# `docker run --user` may name anybody: the home is open to all, as /tmp is, and USER stands in for
# a line in /etc/passwd, which such a user does not have.
RUN useradd --uid 1000 --create-home wsi && chmod 1777 /home/wsi
ENV HOME=/home/wsi USER=wsi
WORKDIR /data
ENTRYPOINT ["wsi"]
CMD ["--help"]

FROM base AS cpu
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[cpu]"
USER 1000:1000

FROM base AS cuda
RUN pip install --no-cache-dir "$(echo /wheel/*.whl)[gpu]"
USER 1000:1000
