# syntax=docker/dockerfile:1
# khook in an image of its own: one static program, the certificate authorities of the system, nothing else.
#
#   docker buildx build --platform linux/amd64,linux/arm64 -t khook .

ARG RUST_VERSION=1.95
ARG BUILD_IMAGE=docker.io/library/rust:${RUST_VERSION}-slim-bookworm
ARG BASE_IMAGE=scratch
# The list of what is inside is made from Cargo.lock: a stripped program does not tell.
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true

# Always on the machine's own architecture: it compiles for the other, which is quicker than to emulate it.
FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
# ring has C and assembly in it. clang compiles them for any architecture, and needs no C library for that.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates clang llvm \
    && rm -rf /var/lib/apt/lists/*
ARG TARGETARCH
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    case "$TARGETARCH" in \
        amd64) target=x86_64-unknown-linux-musl ;; \
        arm64) target=aarch64-unknown-linux-musl ;; \
        *) echo "TARGETARCH is '$TARGETARCH', but must be amd64 or arm64" >&2; exit 1 ;; \
    esac \
    && rustup target add "$target" \
    && TARGET_CC=clang TARGET_AR=llvm-ar RUSTFLAGS="-Clink-self-contained=yes -Clinker=rust-lld" \
        cargo build --locked --release --package khook --bin khook --target "$target" \
    && install "target/$target/release/khook" /khook

FROM ${BASE_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="khook" \
      org.opencontainers.image.description="Turns trouble in a Kubernetes cluster into one well-posed call to an AI agent" \
      org.opencontainers.image.url="https://github.com/kagent-dev/khook" \
      org.opencontainers.image.source="https://github.com/kagent-dev/khook" \
      org.opencontainers.image.documentation="https://github.com/kagent-dev/khook/tree/main/docs" \
      org.opencontainers.image.vendor="kagent" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# For https to kagent, to agents and to a collector of traces. The apiserver's authority comes with the pod.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /khook /khook
# By number: there is no /etc/passwd, and `runAsNonRoot` can tell only a number.
USER 65532:65532
EXPOSE 8080 8081
ENTRYPOINT ["/khook"]
