# Two images, without root, with a health check:
#   docker build -t equipoise .
#   docker build --build-arg DEVICE=cuda -t equipoise:cuda .
#   docker run -p 8000:8000 -v equipoise-state:/var/lib/equipoise equipoise
# The admin token is in the volume: docker exec CONTAINER cat /var/lib/equipoise/admin-token

ARG DEVICE=cpu

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked --bin equipoise

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
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/equipoise equipoise
COPY --from=build /build/target/release/equipoise /opt/equipoise/equipoise
COPY --from=onnxruntime /ort/onnxruntime/capi/libonnxruntime* /opt/equipoise/lib/
COPY models/icons30 /opt/equipoise/models/icons30
ENV EQUIPOISE_LISTEN=0.0.0.0:8000 EQUIPOISE_STATE_DIR=/var/lib/equipoise EQUIPOISE_DEVICE=${DEVICE} EQUIPOISE_LOG_FORMAT=json
USER equipoise
VOLUME /var/lib/equipoise
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD curl -fsS http://127.0.0.1:8000/readyz || exit 1
ENTRYPOINT ["/opt/equipoise/equipoise"]
CMD ["serve"]
