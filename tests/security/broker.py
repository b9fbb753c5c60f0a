"""One broker of Apache Kafka that lets nobody in without proof: a listener for
each way to give one, ACLs, and a plaintext one on loopback for administration."""

import os
import re
import signal
import socket
import subprocess

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from harness import ROOT, Process, check, tail, wait_until

from common import Authority, Issuer, jwks, write

LISTENERS = {
    "ADMIN": "PLAINTEXT",
    "SASL": "SASL_SSL",
    "FEW": "SASL_SSL",
    "MTLS": "SSL",
    "MISNAMED": "SSL",
    "CONTROLLER": "PLAINTEXT",
}
SCRAM = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}
START_SECONDS_MAX = 120
# How long the listener FEW lets a session last.
SESSION_SECONDS = 5
LOGIN = "org.apache.kafka.common.security"


def free_ports(count):
    """Held together, so that no port is given twice."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Broker:
    """Users: `gateway` may do what a gateway must, `poor` nothing, `mute`
    everything but write requests."""

    def __init__(self, folder, secrets):
        self.folder = folder / "kafka"
        self.folder.mkdir()
        self.ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        self.authority, self.stranger = Authority("Kafka CA"), Authority("Another CA")
        self.clients = Authority("Clients CA")
        self.issuer = Issuer("kafka", secrets, audience="kafka")
        self.secrets = secrets
        self.passwords = {name: secrets.password() for name in ("gateway", "poor", "mute")}
        self.ca_file = write(self.folder / "ca.pem", self.authority.pem)
        self.other_ca_file = write(self.folder / "other-ca.pem", self.stranger.pem)
        self._write_config()
        self._format()
        self.process = None
        self.launch()
        self._let_in()

    def address(self, listener):
        return f"127.0.0.1:{self.ports[listener]}"

    # ---- configuration ----

    def _write_config(self):
        names = [name for name in LISTENERS if name != "CONTROLLER"]
        clients = write(self.folder / "clients.pem", self.clients.pem)
        good = self._keystore("server", ["localhost", "127.0.0.1"])
        misnamed = self._keystore("misnamed", ["kafka.elsewhere.example"])
        jwks_file = write(self.folder / "jwks.json", jwks(self.issuer))
        self.jvm = [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{jwks_file}"]
        users = " ".join(f'user_{name}="{password}"' for name, password in self.passwords.items())
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{self.address('CONTROLLER')}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=ADMIN",
            "listeners=" + ",".join(f"{name}://{self.address(name)}" for name in LISTENERS),
            "advertised.listeners=" + ",".join(f"{name}://{self.address(name)}" for name in names),
            "listener.security.protocol.map=" + ",".join(f"{k}:{v}" for k, v in LISTENERS.items()),
            f"log.dirs={self.folder}/log",
            "auto.create.topics.enable=false",
            "num.partitions=2",
            "offsets.topic.num.partitions=1",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            "log.cleaner.dedupe.buffer.size=8388608",
            # Whoever fails to prove who they are waits for the answer that long.
            "connection.failed.authentication.delay.ms=100",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "allow.everyone.if.no.acl.found=false",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={good}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={clients}",
            "listener.name.mtls.ssl.client.auth=required",
            "listener.name.misnamed.ssl.keystore.type=PEM",
            f"listener.name.misnamed.ssl.keystore.location={misnamed}",
            "listener.name.few.sasl.enabled.mechanisms=SCRAM-SHA-512",
            f"listener.name.few.connections.max.reauth.ms={SESSION_SECONDS * 1000}",
            f"listener.name.few.scram-sha-512.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
            "listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"listener.name.sasl.plain.sasl.jaas.config={LOGIN}.plain.PlainLoginModule required {users};",
            f"listener.name.sasl.scram-sha-256.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
            f"listener.name.sasl.scram-sha-512.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
            f"listener.name.sasl.oauthbearer.sasl.jaas.config={LOGIN}.oauthbearer.OAuthBearerLoginModule required;",
            "listener.name.sasl.oauthbearer.sasl.server.callback.handler.class="
            f"{LOGIN}.oauthbearer.OAuthBearerValidatorCallbackHandler",
            f"listener.name.sasl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=file://{jwks_file}",
            f"listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.issuer={self.issuer.name}",
            f"listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.audience={self.issuer.audience}",
            "listener.name.sasl.oauthbearer.sasl.oauthbearer.clock.skew.seconds=1",
        ]
        self.config = write(self.folder / "server.properties", "\n".join(lines) + "\n")

    def _keystore(self, name, hosts):
        certificate, key = self.authority.issue(name, hosts)
        return write(self.folder / f"{name}.pem", key + certificate)

    # ---- the process ----

    def _format(self):
        script = ROOT / "scripts" / "kafka"
        cluster = re.sub(r"\W", "x", os.urandom(9).hex()[:22].ljust(22, "x"))
        command = [str(script), "tool", "storage", "format", "--cluster-id", cluster, "--config", str(self.config)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        check(ran.returncode == 0, f"the broker's storage: {ran.stdout}{ran.stderr}")

    def launch(self):
        pom = (ROOT / "scripts/kafka.d/pom.xml").read_text()
        version = re.search(r"<kafka.version>(.*)</kafka.version>", pom)[1]
        jars = os.environ.get("KAFKA_JARS_DIR") or ROOT / ".kafka" / "lib"
        home = os.environ.get("JAVA_HOME")
        command = [
            f"{home}/bin/java" if home else "java", "-Xms128m", "-Xmx384m", "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1", "-Xshare:auto", *self.jvm,
            f"-Dlog4j2.configurationFile={ROOT}/scripts/kafka.d/log4j2.properties",
            "-cp", f"{jars}/{version}/*", "kafka.Kafka", str(self.config),
        ]  # fmt: skip
        self.process = Process(self.folder, "broker", command)

        def started():
            check(self.process.alive(), f"the broker ended\n{tail(self.process.stdout, 40)}{tail(self.process.stderr)}")
            return "Kafka Server started" in self.process.stdout.read_text(errors="replace")

        wait_until(started, START_SECONDS_MAX, lambda: f"the broker's start\n{tail(self.process.stdout)}", pause=0.2)
        self.admin = AdminClient({"bootstrap.servers": self.address("ADMIN"), "log_level": 0})

    def restart(self):
        """Cuts every connection."""
        self.process.signal(signal.SIGTERM)
        self.process.exit_code(60)
        self.launch()

    def stop(self):
        self.admin = None
        if self.process is not None:
            self.process.signal(signal.SIGKILL)
            self.process.exit_code(20)

    # ---- users and what they may ----

    def _let_in(self):
        for user, password in self.passwords.items():
            self.set_scram_password(user, password)
        self.create_topics("echo.v1.EchoService", "payment_request")
        # Named by the certificate of a client, too.
        for user in ("User:gateway", "User:CN=gateway"):
            for operation in ("READ", "WRITE", "CREATE", "DELETE"):
                self.allow(user, "antiphon.reply", operation, prefix=True)
            for topic in ("echo.v1.EchoService", "payment_request"):
                self.allow(user, topic, "WRITE")
        self.allow("User:mute", "antiphon.reply", "ALL", prefix=True)
        self.allow("User:mute", "echo.v1.EchoService", "DESCRIBE")

    def set_scram_password(self, user, password):
        info = {name: ScramCredentialInfo(mechanism, 4096) for name, mechanism in SCRAM.items()}
        changes = [UserScramCredentialUpsertion(user, one, password.encode()) for one in info.values()]
        for change in changes:
            for future in self.admin.alter_user_scram_credentials([change]).values():
                future.result(30)

    def _binding(self, user, topic, operation, prefix):
        kind = ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL
        operation = AclOperation[operation]
        return AclBinding(ResourceType.TOPIC, topic, kind, user, "*", operation, AclPermissionType.ALLOW)

    def allow(self, user, topic, operation, prefix=False):
        for future in self.admin.create_acls([self._binding(user, topic, operation, prefix)]).values():
            future.result(30)

    def forbid(self, user, topic, operation, prefix=False):
        kind = ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL
        taken = AclBindingFilter(
            ResourceType.TOPIC, topic, kind, user, "*", AclOperation[operation], AclPermissionType.ALLOW
        )
        for future in self.admin.delete_acls([taken]).values():
            check(len(future.result(30)) == 1, f"there was an ACL {operation} on {topic} for {user}")

    def create_topics(self, *names):
        for future in self.admin.create_topics([NewTopic(name, 2, 1) for name in names]).values():
            future.result(30)

    def topics(self):
        try:
            return set(self.admin.list_topics(timeout=10).topics)
        except KafkaException:
            return set()
