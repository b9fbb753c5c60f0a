"""Towards callers: each identity against each method, and what becomes of them
when certificates and keys change under way."""

import base64
import hashlib
import hmac
import json
import time

import grpc
import jwt
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from common import ECHO, PAY, REFUND, Authority, Gateway, Issuer, Table, bench_worker, call, jwks, write
from harness import wait_until

SHOP, BANK = "spiffe://prod/ns/shop/sa/web", "spiffe://prod/ns/bank/sa/desk"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
COLUMNS = ["Pay", "Refund", "Echo", "Health", "Reflection"]
OK, NOBODY, DENIED, NOT_CONNECTED = "OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "no connection"
ROTATION_SECONDS_MAX = 20

RULES = [
    "cert:spiffe://prod/ns/shop/* -> payments.v1.PaymentService/Pay",
    "cert:spiffe://prod/ns/bank/* -> payments.v1.PaymentService/*",
    "cert:spiffe://prod/ns/bank/* -> echo.v1.EchoService/*",
    "token:scope=payments:write -> payments.v1.PaymentService/Pay",
    "authenticated -> grpc.reflection.v1.ServerReflection/*",
]


class Door:
    """A gateway that asks who calls, with all that proves it."""

    def __init__(self, bench):
        self.bench, folder = bench, bench.folder
        self.server, self.clients = Authority("Servers CA"), Authority("Callers CA")
        self.stranger = Authority("Stranger CA")
        self.issuer = Issuer("one", bench.secrets)
        self.cert_file, self.key_file = folder / "door.crt", folder / "door.key"
        self.ca_file, self.jwks_file = folder / "callers.pem", folder / "door-jwks.json"
        self.show(self.server)
        write(self.ca_file, self.clients.pem)
        write(self.jwks_file, jwks(self.issuer))
        config = (
            f'[kafka]\nbootstrap_servers = ["{bench.broker.address("ADMIN")}"]\n\n'
            f'[grpc]\nlisten = "127.0.0.1:0"\n\n[grpc.tls]\ncert_file = "{self.cert_file}"\n'
            f'key_file = "{self.key_file}"\nclient_ca_file = "{self.ca_file}"\nclient_auth = "optional"\n'
            f'reload_interval = "500ms"\n\n[access]\nallow = {json.dumps(RULES)}\njwks_file = "{self.jwks_file}"\n'
            f'jwks_refresh = "500ms"\nleeway = "1s"\nissuer = "{self.issuer.name}"\naudience = "antiphon"\n'
        )
        self.gateway = bench.child(Gateway(folder, bench.antiphon, "door", config)).wait_ready()
        self.port = self.gateway.grpc.rsplit(":", 1)[1]

    def show(self, authority):
        """Key first: what is read between the two does not fit, and is passed over."""
        certificate, key = authority.issue("antiphon", ["localhost"])
        write(self.key_file, key)
        write(self.cert_file, certificate)

    def channel(self, server=None, certificate=None):
        pem, key = certificate or (None, None)
        credentials = grpc.ssl_channel_credentials(
            (server or self.server).pem.encode(), key and key.encode(), pem and pem.encode()
        )
        # Channels with the same arguments would share a connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
        return grpc.secure_channel(f"localhost:{self.port}", credentials, options)


def certificate_of(authority, name, uri):
    return authority.issue(name, uri=uri)


def identities(door):
    """Name, certificate, metadata, and the codes of the columns."""
    issuer, secrets = door.issuer, door.bench.secrets
    write_scope = {"scope": "payments:read payments:write"}

    def bearer(token):
        return (("authorization", f"Bearer {token}"),)

    def forged(header, signature):
        part = lambda it: base64.urlsafe_b64encode(it).rstrip(b"=").decode()
        text = f"{part(json.dumps(header).encode())}.{part(json.dumps(issuer.claims(**write_scope)).encode())}"
        return secrets.keep(f"{text}.{part(signature(text.encode()))}")

    def hs256(text):
        return hmac.new(issuer.public_pem(), text, hashlib.sha256).digest()

    good = issuer.token(**write_scope)
    head, claims, signature = good.split(".")
    richer = {**jwt.decode(good, options={"verify_signature": False}), "scope": "everything payments:write"}
    richer = base64.urlsafe_b64encode(json.dumps(richer).encode()).rstrip(b"=").decode()
    other_key = Issuer("one", secrets)

    nobody = [NOBODY, NOBODY, NOBODY, OK, NOBODY]
    shop = certificate_of(door.clients, "web", SHOP)
    yield "nobody", None, (), nobody
    yield "certificate of shop", shop, (), [OK, DENIED, DENIED, OK, OK]
    yield "certificate of bank", certificate_of(door.clients, "desk", BANK), (), [OK, OK, OK, OK, OK]
    yield "certificate without a rule", certificate_of(door.clients, "x", "spiffe://prod/ns/x"), (), [DENIED, DENIED, DENIED, OK, OK]
    yield "a stranger's certificate of shop", certificate_of(door.stranger, "web", SHOP), (), [NOT_CONNECTED] * 5
    yield "token with the scope", None, bearer(good), [OK, DENIED, DENIED, OK, OK]
    yield "token without the scope", None, bearer(issuer.token(scope="payments:read")), [DENIED, DENIED, DENIED, OK, OK]
    yield "expired token", None, bearer(issuer.token(-60, **write_scope)), nobody
    yield "token not yet valid", None, bearer(issuer.token(nbf=int(time.time()) + 600, **write_scope)), nobody
    yield "token without an expiry", None, bearer(issuer.token(exp=None, **write_scope)), nobody
    yield "token for another audience", None, bearer(issuer.token(aud="other", **write_scope)), nobody
    yield "token of another issuer", None, bearer(issuer.token(iss="https://evil.example/", **write_scope)), nobody
    yield "token with other claims", None, bearer(secrets.keep(f"{head}.{richer}.{signature}")), nobody
    yield "token of another key", None, bearer(other_key.token(**write_scope)), nobody
    yield "token with alg none", None, bearer(forged({"alg": "none", "kid": "one"}, lambda _: b"")), nobody
    yield "token with HS256 by the public key", None, bearer(forged({"alg": "HS256", "kid": "one"}, hs256)), nobody
    yield "token that is none", None, bearer("garbage"), nobody
    yield "basic authentication", None, (("authorization", "Basic aGk6aG8="),), nobody
    yield "certificate of shop and expired token", shop, bearer(issuer.token(-60, **write_scope)), [OK, NOBODY, NOBODY, OK, OK]


def cell(channel, column, metadata):
    if column == "Reflection":
        return reflect(channel, metadata)
    path, message = {
        "Pay": (PAY, b"\x0a\x01o\x10\x05"),
        "Refund": (REFUND, b"\x0a\x01o\x18\x05"),
        "Echo": (ECHO, b""),
        "Health": (HEALTH, health_pb2.HealthCheckRequest().SerializeToString()),
    }[column]
    code, details = call(channel, path, message, metadata=metadata)
    return NOT_CONNECTED if code == "UNAVAILABLE" and "connect" in details.lower() else code


def reflect(channel, metadata):
    request = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    method = channel.stream_stream(REFLECTION, lambda it: it, lambda it: it)
    try:
        answers = list(method(iter([request]), timeout=10, metadata=metadata))
    except grpc.RpcError as error:
        return NOT_CONNECTED if error.code() == grpc.StatusCode.UNAVAILABLE else error.code().name
    return OK if len(answers) == 1 and b"PaymentService" in answers[0] else "nothing"


def matrix(door, bench):
    table = Table("Callers", "who", *COLUMNS)
    bench.tables.append(table)
    for name, certificate, metadata, expected in identities(door):
        with door.channel(certificate=certificate) as channel:
            found = [cell(channel, column, metadata) for column in COLUMNS]
        bad = [f"{c} is {f}, not {e}" for c, f, e in zip(COLUMNS, found, expected, strict=True) if f != e]
        table.row(name, *found, wrong="; ".join(bad))
    refused = door.gateway.logged().count("TLS handshake failed")
    if refused == 0:
        table.wrong.append("Callers: no handshake failed, though a stranger's certificate was shown")


def rotations(door, bench):
    table = Table("Callers, what changes under way", "what", "who", "seen")
    bench.tables.append(table)
    shop = certificate_of(door.clients, "web", SHOP)
    pay = lambda channel, metadata=(): cell(channel, "Pay", metadata)

    def row(what, who, seen, wanted):
        table.row(what, who, seen, wrong=None if seen == wanted else f"{who}: {seen}, not {wanted}")

    def once(words, ready):
        wait_until(ready, ROTATION_SECONDS_MAX, words, pause=0.2)

    old = door.channel(certificate=shop)
    row("before", "a connection that stays", pay(old), OK)
    fresh = Authority("New servers CA")
    door.show(fresh)

    def sees_new():
        with door.channel(server=fresh, certificate=shop) as channel:
            return pay(channel) == OK

    once("the new server certificate is shown", sees_new)
    row("server certificate of another CA", "who trusts the new CA", OK, OK)
    with door.channel(certificate=shop) as channel:
        row("server certificate of another CA", "who trusts the old CA", pay(channel), NOT_CONNECTED)
    row("server certificate of another CA", "the connection that stays", pay(old), OK)

    write(door.cert_file, "no certificate")
    time.sleep(1.5)
    with door.channel(server=fresh, certificate=shop) as channel:
        row("a certificate file that is none", "a new connection", pay(channel), OK)
    door.show(fresh)

    callers = Authority("New callers CA")
    write(door.ca_file, callers.pem)
    theirs = certificate_of(callers, "web", SHOP)

    def trusted():
        with door.channel(server=fresh, certificate=theirs) as channel:
            return pay(channel) == OK

    once("callers of the new CA are let in", trusted)
    row("callers' CA", "certificate of the new CA", OK, OK)
    with door.channel(server=fresh, certificate=shop) as channel:
        row("callers' CA", "certificate of the old CA", pay(channel), NOT_CONNECTED)
    old.close()
    keys(door, bench, fresh, row, once)


def keys(door, bench, server, row, once):
    bearer = lambda issuer: (("authorization", f"Bearer {issuer.token(scope='payments:write')}"),)
    second = Issuer("two", bench.secrets)
    first, of_second = bearer(door.issuer), bearer(second)
    with door.channel(server=server) as channel:
        pay = lambda metadata: cell(channel, "Pay", metadata)
        row("before the keys change", "token of the old key", pay(first), OK)
        row("before the keys change", "token of the new key", pay(of_second), NOBODY)
        write(door.jwks_file, jwks(door.issuer, second))
        once("the new key counts", lambda: pay(of_second) == OK)
        row("both keys are published", "token of the new key", OK, OK)
        row("both keys are published", "token of the old key", pay(first), OK)
        write(door.jwks_file, "{}")
        time.sleep(1.5)
        row("a key file that is none", "token of the new key", pay(of_second), OK)
        write(door.jwks_file, jwks(second))
        once("the old key counts no more", lambda: pay(first) == NOBODY)
        row("the new key alone", "token of the old key", NOBODY, NOBODY)
        row("the new key alone", "token of the new key", pay(of_second), OK)


def run(bench):
    for topic in ("payment_request", "echo.v1.EchoService"):
        bench.child(bench_worker(bench.folder, bench.antiphon, bench.broker.address("ADMIN"), topic))
    door = Door(bench)
    matrix(door, bench)
    rotations(door, bench)
    (bench.folder / "door-metrics.page").write_text(door.gateway.page("/metrics")[1])
    door.gateway.end()
