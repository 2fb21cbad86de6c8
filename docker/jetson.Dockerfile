# JetPack 6 with TensorRT 10.3. Build and run on the Jetson: docs/jetson.md. NOT BUILT YET by us.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-pip python3-venv python3-libnvinfer \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/gmin-edge
COPY . .
# the environment sees the system's tensorrt, which no package index has for this board
RUN python3 -m venv --system-site-packages /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --upgrade pip \
 && /opt/venv/bin/pip install --no-cache-dir --editable '.[jetpack6]'
ENV PATH=/opt/venv/bin:$PATH XDG_CACHE_HOME=/tmp/cache
# plans are native code: an unprivileged user builds and runs them
RUN useradd --create-home gmin
USER gmin
ENTRYPOINT ["gmin"]
CMD ["doctor"]
