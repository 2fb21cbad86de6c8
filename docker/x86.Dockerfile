# x86 with an NVIDIA GPU; TensorRT from the package index. Run with --gpus all: docs/jetson.md. NOT BUILT YET by us.
# For RTX cards: --build-arg EXTRA=tensorrt-rtx
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRA=tensorrt
# the driver's libraries are put in by the container runtime when it is told which parts are wanted
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/gmin-edge
COPY . .
RUN pip install --no-cache-dir --editable ".[ort,${EXTRA}]"
ENV XDG_CACHE_HOME=/tmp/cache
RUN useradd --create-home gmin
USER gmin
ENTRYPOINT ["gmin"]
CMD ["doctor"]
