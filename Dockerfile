# The gateway: docker build -t antiphon .
#
# The image is the binary, certificates of public authorities, and nothing else: no
# shell, no libraries, nothing to write to. It needs no writable file system:
#   docker run --read-only --cap-drop ALL antiphon ...
FROM rust:1.91-slim-bookworm AS build
WORKDIR /src
COPY . .
# What is fetched and built stays in the builder's cache; only /image goes on. Linked
# whole (crt-static), so that it runs on an empty file system; --target keeps the flag
# away from build scripts and macros, which can't be linked so.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    set -eu; \
    host=$(rustc -vV | sed -n 's/^host: //p'); \
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin antiphon --target "$host"; \
    mkdir -p /image/usr/local/bin /image/etc/ssl/certs; \
    strip --strip-debug -o /image/usr/local/bin/antiphon "target/$host/release/antiphon"; \
    apt-get update -q; apt-get install -y -q --no-install-recommends ca-certificates; \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Antiphon" \
      org.opencontainers.image.description="A gRPC façade over Kafka request-reply" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/ /
# gRPC, and metrics with live and ready.
EXPOSE 50051 9464
USER 65532:65532
# Drains: health turns, calls in flight end.
STOPSIGNAL SIGTERM
# Asks the admin listener of the same environment; see `antiphon health --help`.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/antiphon", "health"]
ENTRYPOINT ["/usr/local/bin/antiphon"]
CMD ["serve"]
