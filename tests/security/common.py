"""What the parts share: certificates, tokens, gateways, tables."""

import datetime
import ipaddress
import json
import os
import secrets
import time
import urllib.error
import urllib.request

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from harness import PROTO_DIR, READY_LINE, Process, check, tail, wait_until

ECHO = "/echo.v1.EchoService/Echo"
PAY = "/payments.v1.PaymentService/Pay"
REFUND = "/payments.v1.PaymentService/Refund"
PROTOS = ["payments/v1/payments.proto", "echo/v1/echo.proto"]


# ---- tables ------------------------------------------------------------------


class Table:
    """Rows that are printed as they come to be known; wrong ones are remembered."""

    def __init__(self, title, *columns):
        self.title, self.columns, self.rows, self.wrong = title, columns, [], []

    def row(self, *cells, wrong=None):
        """`wrong` says what is, where something is."""
        self.rows.append([str(cell) for cell in cells] + ["WRONG" if wrong else "right"])
        if wrong:
            self.wrong.append(f"{self.title}: {cells[0]}: {wrong}")
        print(f"  {'WRONG' if wrong else 'right'}  {' | '.join(self.rows[-1][:-1])}", flush=True)

    def markdown(self):
        head = [*self.columns, ""]
        widths = [max(len(row[i]) for row in [head, *self.rows]) for i in range(len(head))]
        line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        return "\n".join([f"### {self.title}", "", line(head), rule, *map(line, self.rows), ""])


# ---- secrets -----------------------------------------------------------------


class Secrets:
    """Everything that must not be seen anywhere."""

    def __init__(self):
        self.known = set()

    def password(self):
        return self.keep(secrets.token_urlsafe(18))

    def keep(self, text):
        self.known.add(text)
        return text

    def found_in(self, text):
        """Which part of which secret, shortened: the signature alone would do harm, too."""
        parts = {part for secret in self.known for part in (secret, secret.rsplit(".", 1)[-1]) if len(part) > 8}
        return [f"{part[:3]}... ({len(part)} characters)" for part in parts if part in text]


# ---- certificates ------------------------------------------------------------


def write(path, text):
    """In one rename, as secrets are mounted: nobody reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)
    return path


class Authority:
    """A certificate authority of our own."""

    def __init__(self, name):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.pem = self._pem(self.certificate)

    def _builder(self, subject, public_key):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
            now + datetime.timedelta(days=2)
        )

    @staticmethod
    def _pem(certificate):
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name, hosts=(), uri=None):
        """Certificate and key of a server or a client, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key())
        names = [x509.DNSName(host) for host in hosts if not host[0].isdigit()]
        names += [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts if host[0].isdigit()]
        names += [x509.UniformResourceIdentifier(uri)] if uri else []
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        pkcs8 = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._pem(certificate), pkcs8.decode()


# ---- tokens ------------------------------------------------------------------


class Issuer:
    """Somebody who signs tokens."""

    def __init__(self, kid, known_secrets, name="https://login.example.com/", audience="antiphon"):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.kid, self.secrets, self.name, self.audience = kid, known_secrets, name, audience

    def jwk(self):
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return {**jwk, "kid": self.kid, "alg": "RS256", "use": "sig"}

    def public_pem(self):
        kind = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(serialization.Encoding.PEM, kind)

    def claims(self, seconds=600, **more):
        now = int(time.time())
        claims = {"sub": "gateway", "iss": self.name, "aud": self.audience, "iat": now, "exp": now + seconds, **more}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, seconds=600, **more):
        claims = self.claims(seconds, **more)
        return self.secrets.keep(jwt.encode(claims, self.key, "RS256", headers={"kid": self.kid}))


def jwks(*issuers):
    return json.dumps({"keys": [issuer.jwk() for issuer in issuers]})


# ---- gateways ----------------------------------------------------------------


class Gateway(Process):
    """`antiphon serve` with a configuration of the test's own."""

    def __init__(self, folder, binary, name, config, start_timeout="20s", protos=PROTOS):
        path = folder / f"{name}.toml"
        path.write_text(
            f'[admin]\nlisten = "127.0.0.1:0"\n\n[reply]\nstart_timeout = "{start_timeout}"\n'
            f'topic_prefix = "antiphon.reply"\nheartbeat_interval = "1s"\n\n{config}'
        )
        self.arguments = ["--config", str(path), "--proto-path", str(PROTO_DIR)]
        for proto in protos:
            self.arguments += ["--proto", str(PROTO_DIR / proto)]
        self.binary = binary
        super().__init__(folder, name, [str(binary), "serve", *self.arguments])

    def wait_ready(self, seconds=60):
        def ready():
            check(self.alive(), f"{self.name} ended with {self.child.poll()}\n{tail(self.stderr)}")
            return READY_LINE.search(self.stdout.read_text())

        found = wait_until(ready, seconds, lambda: f"the ready line of {self.name}\n{tail(self.stderr)}")
        self.grpc, self.admin, self.reply_topic = found["grpc"], found["admin"], found["reply_topic"]
        return self

    def page(self, path):
        """Status and text of a page of the admin listener."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def logged(self):
        return self.stderr.read_text(errors="replace")

    def memory_mib(self):
        with open(f"/proc/{self.child.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def bench_worker(folder, binary, bootstrap, topic):
    """Answers every request of a topic with the request's own bytes."""
    command = [str(binary), "bench", "worker", "--bootstrap-servers", bootstrap, "--topic", topic]
    return Process(folder, f"worker-{topic}", command)


def call(channel, path, message=b"", seconds=10, metadata=()):
    """The name of the code that a call ends with, and its details."""
    method = channel.unary_unary(path, lambda it: it, lambda it: it)
    try:
        method(message, timeout=seconds, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def echo(address, text=b"hello", seconds=10):
    """Whether an echo comes back over a fresh plaintext connection."""
    # An EchoRequest: field 1, bytes.
    message = bytes([0x0A, len(text)]) + text
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(ECHO, lambda it: it, lambda it: it)
        try:
            return "OK" if method(message, timeout=seconds) == message else "another reply"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
