# The gateway: docker build -t antiphon .
FROM rust:1.91-slim-bookworm AS build
WORKDIR /src
COPY . .
# What is fetched and built stays in the builder's cache; only the binary goes on.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin antiphon \
    && cp target/release/antiphon /antiphon

FROM debian:bookworm-slim
COPY --from=build /antiphon /usr/local/bin/antiphon
# gRPC, and metrics with live and ready.
EXPOSE 50051 9464
USER 65532
ENTRYPOINT ["/usr/local/bin/antiphon"]
CMD ["serve"]
