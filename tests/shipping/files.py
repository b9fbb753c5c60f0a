"""docker-compose.yml and the files that it mounts, and Envoy's configuration."""

import re
import tempfile
from pathlib import Path

import yaml

from chart import seconds
from parts import ROOT, check, run

# What a gateway drains for when drain.timeout is not set, docs/configuration.md.
DRAIN_SECONDS = 30


def check_compose(antiphon, lint, folder):
    run(lint, "compose", ROOT / "docker-compose.yml")
    wrong = folder / "wrong.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("depends_on:", "depend_on:", 1))
    check("depend_on" in run(lint, "compose", wrong, ok=False), "a compose file with a misspelt key is accepted")

    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    wanted = {"kafka", "topics", "worker", "gateway-1", "gateway-2", "balancer", "prometheus", "grafana"}
    check(set(services) == wanted, f"services are {set(services)}")
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            check((ROOT / source).exists(), f"{name} mounts {source}, which is not there")
        for port in service.get("ports", []):
            check(port.startswith("127.0.0.1:"), f"{name} is open to the network: {port}")
    gateway = services["gateway-1"]
    check(gateway["read_only"] and gateway["cap_drop"] == ["ALL"], "gateways may write, or have capabilities")
    check(not any(key in gateway for key in ("tmpfs",)), "a gateway needs nothing to write to")
    environment = gateway["environment"]
    grace, notice = seconds(gateway["stop_grace_period"]), seconds(environment["ANTIPHON_DRAIN_NOTICE"])
    check(grace > notice + DRAIN_SECONDS + 5, f"grace {grace} s, notice {notice} s and drain {DRAIN_SECONDS} s")
    check_balancer_notices(notice)
    flags = [flag.replace("/proto", str(ROOT / "proto"), 1) if "=/proto" in flag else flag for flag in gateway["command"]]
    check(flags.pop(0) == "serve", "gateways serve")
    told = run(antiphon, "check", *flags, env={**environment})
    topics = set(re.findall(r"for topic in (.*); do", (ROOT / "docker-compose.yml").read_text())[0].split())
    asked = {line.split()[1] for line in told.split("\n\n")[0].splitlines()[1:]}
    check(asked == topics, f"made are {topics}, routes go to {asked}")
    print(f"ok  compose: {len(services)} services, flags that antiphon accepts, topics for all routes, {grace} s to drain")


def check_balancer_notices(notice):
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    interval, fall = re.search(r"inter (\d+)s fall (\d+)", text).groups()
    check(notice > int(interval) * (int(fall) + 1), f"drain.notice of {notice} s is over before HAProxy has seen it")


def check_prometheus(folder):
    text = (ROOT / "deploy/prometheus/compose.yml").read_text()
    check("/etc/prometheus/alerts.yml" in text, "it loads no alerts")
    file = folder / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/alerts.yml", str(ROOT / "deploy/prometheus/alerts.yml")))
    run("promtool", "check", "config", file)
    check('job_name: antiphon\n' in text, "the alerts ask for the job antiphon")
    for file in sorted((ROOT / "deploy/grafana/provisioning").rglob("*.yml")):
        check(yaml.safe_load(file.read_text())["apiVersion"] == 1, f"{file}")
    print("ok  compose: Prometheus's configuration and alerts")


def check_envoy(lint, folder):
    config = ROOT / "deploy/envoy/envoy.yaml"
    run(lint, "envoy", config)
    text = config.read_text()
    for right, wrong, words in [
        ("lb_policy: LEAST_REQUEST", "lb_policy: LEAST_REQUESTS", "LEAST_REQUESTS"),
        ("stat_prefix: antiphon", 'stat_prefix: ""', "StatPrefix"),
        ("unhealthy_threshold: 2", "unhealthy: 2", "unhealthy"),
        ("max_ejection_percent: 50", "max_ejection_percent: 500", "MaxEjectionPercent"),
    ]:
        file = folder / "envoy.yaml"
        check(right in text, f"deploy/envoy/envoy.yaml has no {right}")
        file.write_text(text.replace(right, wrong))
        check(words in run(lint, "envoy", file, ok=False), f"Envoy's API allows {wrong}")
    print("ok  compose: Envoy's configuration is one of its API (Envoy itself was not run)")


def part(options, lint):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_compose(options.antiphon, lint, folder)
        check_prometheus(folder)
        check_envoy(lint, folder)
