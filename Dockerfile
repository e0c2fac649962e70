# Two images, without root, with a health check:
#   docker build -t equipoise .
#   docker build --build-arg DEVICE=cuda -t equipoise:cuda .
#   docker run -p 8000:8000 -v equipoise-state:/var/lib/equipoise equipoise
#   docker run --gpus all -p 8000:8000 -v equipoise-state:/var/lib/equipoise equipoise:cuda
# A model of your own:
#   docker run -p 8000:8000 -v equipoise-state:/var/lib/equipoise -v $PWD/models/mine:/models/mine:ro equipoise serve /models/mine
# The admin API answers inside of the container alone, on port 8001, where its token lies in the volume:
#   docker exec CONTAINER sh -c 'curl -s -H "Authorization: Bearer $(cat $EQUIPOISE_STATE_DIR/admin-token)" \
#     http://127.0.0.1:8001/admin/v1/models/icons30/heads'
# To reach it from outside, give the container a certificate and an address for it:
#   docker run -p 8000:8000 -p 8001:8001 -v equipoise-state:/var/lib/equipoise -v $PWD/tls:/tls:ro \
#     -e EQUIPOISE_TLS_CERT=/tls/cert.pem -e EQUIPOISE_TLS_KEY=/tls/key.pem -e EQUIPOISE_ADMIN_LISTEN=0.0.0.0:8001 equipoise
# or, where the network is trusted, EQUIPOISE_ALLOW_INSECURE_ADMIN=true in place of the certificate.
# The user is 10001:10001, which has to be able to read the key and to write the volume (`fsGroup: 10001` on Kubernetes).

ARG DEVICE=cpu

FROM rust:1.95-slim-bookworm AS build
# `cloud` is shared state in S3, Google Cloud Storage and Azure; `cloud,turbojpeg` has Pillow's own JPEG decoder too.
ARG FEATURES=cloud
RUN apt-get update && apt-get install -y --no-install-recommends cmake make nasm && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked --features "$FEATURES" --bin equipoise

FROM python:3.12-slim-bookworm AS onnxruntime
ARG DEVICE
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
COPY Makefile ./
RUN case "$DEVICE" in cuda) package=onnxruntime-gpu;; *) package=onnxruntime;; esac; make ort ORT_DIR=/ort ORT_PACKAGE=$package

FROM debian:bookworm-slim AS base-cpu
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base-cuda

FROM base-${DEVICE}
ARG DEVICE
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 equipoise && \
    useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/equipoise equipoise
COPY --from=build /build/target/release/equipoise /opt/equipoise/equipoise
COPY --from=onnxruntime /ort/onnxruntime/capi/libonnxruntime* /opt/equipoise/lib/
COPY models/icons30 /opt/equipoise/models/icons30
# These outrank the same keys of a file given by --config: set them with -e. Who moves the port, or gives the certificate by flag
# or file, gives --health-cmd too.
ENV EQUIPOISE_LISTEN=0.0.0.0:8000 EQUIPOISE_ADMIN_LISTEN=127.0.0.1:8001
ENV EQUIPOISE_STATE_DIR=/var/lib/equipoise EQUIPOISE_DEVICE=${DEVICE} EQUIPOISE_LOG_FORMAT=json
# As a number, by which Kubernetes sees that it is not root.
USER 10001:10001
VOLUME /var/lib/equipoise
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s CMD curl -fsSk "http${EQUIPOISE_TLS_CERT:+s}://127.0.0.1:8000/readyz" || exit 1
ENTRYPOINT ["/opt/equipoise/equipoise"]
CMD ["serve"]
