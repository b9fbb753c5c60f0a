"""The Helm chart, and the manifests that are made from it."""

import base64
import re
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

from parts import ROOT, check, run

CHART = ROOT / "deploy/helm/antiphon"
PLAIN = ROOT / "deploy/kubernetes"
KUBERNETES = "1.34"
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}
# What the chart adds to notice and drain, at least: threads are joined for 5 s.
GRACE_SECONDS_MORE = 10
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
# Values that must be refused, and a part of what is said to them.
REFUSED = [
    ('replicas="two"', "replicas"),
    ("replica=3", "additional properties 'replica' not allowed"),
    ('longestCall="60"', "longestCall"),
    ('longestCall="2m"', "config.drain.timeout (60s) is less than longestCall (2m)"),
    ('config.drain.timeout="59999ms"', "is less than longestCall (60s)"),
    ('config.service={"a.B":{"timeout_max":"61s"}}', 'config.service."a.B".timeout_max (61s) is more than longestCall (60s)'),
    ('config.shards="4"', "config/shards"),
    ('config.kafka.bootstrap_servers=["kafka"]', "bootstrap_servers"),
    ("config.kafka.bootstrap_servers=[]", "bootstrap_servers"),
    ('config.kafka.sasl={"mechanism":"SCRAM-SHA-512","password":"secret"}', "password"),
    ('config.kafka.sasl={"mechanism":"GSSAPI"}', "mechanism"),
    ('config.kafka.sasl={"mechanism":"PLAIN","username":"me"}', "kafka.passwordSecret"),
    ('kafka.passwordSecret="k"', "config.kafka.sasl.mechanism"),
    ('config.grpc={"listen":"0.0.0.0:1"}', "grpc"),
    ('config.proto={"files":["a.proto"]}', "proto"),
    ('config.reply={"routing":"instance"}', "routing"),
    ('config.reply={"routing":"partition"}', "topic"),
    ('config.reply={"instance":"one"}', "same reply topic"),
    ('config.reply={"routing":"partition","topic":"replies","partitions":5}', "less than the 6 that 3 pods"),
    ('config.reply={"routing":"partition","topic":"replies","ordinal":"hostname"}', "workload.kind to StatefulSet"),
    ('workload.kind="DaemonSet"', "kind"),
    ('protos.files={"shop":"syntax"}', "invalid propertyName 'shop'"),
    ('protos.importedOnly=["a.proto"]', "not in protos.files"),
    ('protos.existingConfigMap="shop"', "protos.existingKeys"),
    ('protos.existingKeys=["shop.binpb"]', "protos.existingConfigMap"),
    ("tls.clientCa=true", "tls.secret"),
    ("kafka.clientCertificate=true", "kafka.tlsSecret"),
    ('autoscaling={"enabled":true,"minReplicas":9,"maxReplicas":8}', "minReplicas is more than"),
    ('podDisruptionBudget.maxUnavailable=0', "maxUnavailable"),
    ('networkPolicy.callers=[{"namespace":"shop"}]', "callers"),
    ('image.digest="sha256:12"', "digest"),
    ("networkPolicy.kafkaPorts=[0]", "kafkaPorts"),
]


def helm():
    return run(ROOT / "scripts/manifests", "--helm").strip()


def render(*values, ok=True):
    """The documents that the chart gives, or what it says to bad values."""
    command = [helm(), "template", "antiphon", CHART, "--namespace", "antiphon", "--kube-version", f"{KUBERNETES}.0", *values]
    text = run(*command, ok=ok)
    return text if not ok else [document for document in yaml.safe_load_all(text) if document]


def manifests(documents, *kinds):
    found = [document for document in documents if document["kind"] in kinds]
    check(found, f"no {' or '.join(kinds)} among {[document['kind'] for document in documents]}")
    return found


def workload(documents):
    return manifests(documents, "Deployment", "StatefulSet")[0]


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", duration).groups()
    return int(number) * SECONDS[unit]


def materialise(documents, pod, folder):
    """The pod's volumes, each a folder by its name, as the kubelet would fill it."""
    maps = {document["metadata"]["name"]: document for document in documents if document["kind"] == "ConfigMap"}
    for volume in pod["volumes"]:
        place = folder / volume["name"]
        place.mkdir(parents=True)
        if "secret" in volume:
            for name in ("tls.crt", "tls.key", "ca.crt", "password", "token"):
                (place / name).write_text("secret\n")
            certificate(place)
            continue
        source = maps[volume["configMap"]["name"]]
        data = {name: text.encode() for name, text in source.get("data", {}).items()}
        data |= {name: base64.b64decode(text) for name, text in source.get("binaryData", {}).items()}
        for item in volume["configMap"].get("items") or [{"key": name, "path": name} for name in data]:
            file = place / item["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data[item["key"]])


def certificate(place):
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=test", "-keyout", place / "tls.key", "-out", place / "tls.crt",
    )
    (place / "ca.crt").write_bytes((place / "tls.crt").read_bytes())


def check_settings(antiphon, documents):
    """The ConfigMap's settings, with the pod's volumes where it will have them, pass
    `antiphon check`; the longest time-out of its routes."""
    pod = workload(documents)["spec"]["template"]["spec"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        materialise(documents, pod, folder)
        config = folder / "config" / "antiphon.toml"
        text = config.read_text()
        for mount in pod["containers"][0]["volumeMounts"]:
            text = re.sub(re.escape(mount["mountPath"]) + '(?=["/])', f"{folder}/{mount['name']}", text)
        check("/etc/antiphon" not in text and "/run/secrets" not in text, f"a path that no volume has:\n{text}")
        config.write_text(text)
        told = run(antiphon, "check", "--config", config)
    longest = re.findall(r"\d+(?:ms|s|m|h)\((\d+(?:ms|s|m|h))\)", told)
    check(longest, f"no routes in {told}")
    return max(map(seconds, longest)), text


def check_pod(documents, values, longest):
    """Times that must fit each other, and Kubernetes' own profile "restricted"."""
    pod = workload(documents)["spec"]["template"]["spec"]
    container = pod["containers"][0]
    drain = values["config"]["drain"]
    grace = pod["terminationGracePeriodSeconds"]
    needed = seconds(drain["notice"]) + max(seconds(drain["timeout"]), longest)
    check(grace >= needed + GRACE_SECONDS_MORE, f"grace period {grace} s, notice and drain {needed} s")
    check(seconds(drain["timeout"]) >= longest, f"a call may take {longest} s, the drain {drain['timeout']}")
    probe = container["startupProbe"]
    start = seconds(values["config"].get("reply", {}).get("start_timeout", "30s"))
    check(probe["periodSeconds"] * probe["failureThreshold"] > start, "the startup probe gives up before the gateway does")
    ready = container["readinessProbe"]
    noticed = ready["periodSeconds"] * ready["failureThreshold"]
    check(seconds(drain["notice"]) >= noticed or values["workload"]["kind"] == "StatefulSet" and seconds(drain["notice"]) >= 5,
          f"drain.notice {drain['notice']} is over before the readiness probe sees it ({noticed} s)")
    tls = "[grpc.tls]" in next(d for d in documents if "antiphon.toml" in d.get("data", {}))["data"]["antiphon.toml"]
    check(("grpc" in ready) != tls, "gRPC probes speak no TLS, and without TLS they are the better ones")
    check(container["livenessProbe"]["httpGet"]["path"] == "/live", "liveness that depends on Kafka restarts what works")

    security = container["securityContext"]
    check(pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, "may be root")
    check(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp profile")
    check(security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}, "privileges")
    check(security["readOnlyRootFilesystem"] is True, "a file system that can be written to")
    check(pod["automountServiceAccountToken"] is False, "a token that nobody needs")
    check(pod["enableServiceLinks"] is False, "variables of other services look like settings")
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    check(kinds <= {"configMap", "secret"}, f"volumes of the kinds {kinds}")


def check_references(documents):
    """What one manifest says of another is so."""
    pod = workload(documents)["spec"]["template"]
    labels = pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}

    def fits(selector, where):
        check(selector.items() <= labels.items(), f"{where} selects {selector}, pods have {labels}")

    fits(workload(documents)["spec"]["selector"]["matchLabels"], "the workload")
    services = {service["metadata"]["name"]: service for service in manifests(documents, "Service")}
    for name, service in services.items():
        fits(service["spec"]["selector"], name)
        for port in service["spec"]["ports"]:
            check(port["targetPort"] in ports, f"{name}: no port {port['targetPort']}")
    if workload(documents)["kind"] == "StatefulSet":
        check(workload(documents)["spec"]["serviceName"] in services, "the StatefulSet's service is missing")
    names = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "PodDisruptionBudget":
            fits(spec["selector"]["matchLabels"], kind)
        if kind == "NetworkPolicy":
            fits(spec["podSelector"]["matchLabels"], kind)
            open_ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
            check(open_ports == set(ports.values()), f"the policy opens {open_ports}, the pod has {ports}")
        if kind == "HorizontalPodAutoscaler":
            target = workload(documents)
            check((spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) == (target["kind"], target["metadata"]["name"]), kind)
            check("replicas" not in target["spec"], "each roll-out would undo the autoscaler")
            page = (ROOT / "docs/metrics.md").read_text()
            check(f"`{spec['metrics'][0]['pods']['metric']['name']}`" in page, "no such metric")
        if kind == "ServiceMonitor":
            chosen = [s for s in services.values() if spec["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
            check(len(chosen) == 1, f"the ServiceMonitor selects {len(chosen)} services: each pod would be read as often")
            check(spec["endpoints"][0]["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}, "its port")
    for volume in pod["spec"]["volumes"]:
        check("configMap" not in volume or volume["configMap"]["name"] in names, f"no ConfigMap for {volume}")


def check_schemas(documents, lint, folder, where):
    for document in documents:
        if document["kind"] in OPERATOR_KINDS:
            file = folder / f"{document['kind']}.yaml"
            file.write_text(yaml.safe_dump(document))
            run(lint, "operator", file)
        else:
            try:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                check(False, f"{where}: {document['kind']}: {error}")


def check_validators(lint, folder):
    """That what validates does refuse."""
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": [{"port": 1}]}}
    try:
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError:
        pass
    else:
        check(False, "a Service with a misspelt field is accepted")
    file = folder / "wrong.yaml"
    file.write_text("kind: ServiceMonitor\nspec: {endpoint: []}\n")
    check("endpoint" in run(lint, "operator", file, ok=False), "a ServiceMonitor with a misspelt field is accepted")


def check_rules(documents, folder):
    rules = [document["spec"] for document in documents if document["kind"] == "PrometheusRule"]
    if rules:
        file = folder / "rules.yml"
        file.write_text(yaml.safe_dump(rules[0]))
        run("promtool", "check", "rules", file)
        ours = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
        check(rules[0] == ours, "the rules are not those of deploy/prometheus/alerts.yml")
    return len(rules)


def check_adapter(folder):
    """The adapter's query, filled in as the adapter does it, is one that Prometheus knows."""
    (rule,) = yaml.safe_load((PLAIN / "prometheus-adapter/values.yaml").read_text())["rules"]["custom"]
    query = rule["metricsQuery"]
    for name, text in {"Series": "antiphon_calls_in_flight", "LabelMatchers": 'namespace="a",pod=~"b|c"', "GroupBy": "pod"}.items():
        check(f"<<.{name}>>" in query, f"the query has no {name}")
        query = query.replace(f"<<.{name}>>", text)
    file = folder / "adapter.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": [{"record": "a:b", "expr": query}, {"record": "a:c", "expr": rule["seriesQuery"]}]}]}))
    run("promtool", "check", "rules", file)


def refuse_bad_values():
    for values, words in REFUSED:
        said = render("--set-json", values, ok=False)
        check(words in said, f"{values} is refused with other words than {words!r}:\n{said[-800:]}")
    print(f"ok  chart: {len(REFUSED)} wrong values are refused, each with what is wrong")


def part(options, lint):
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    check((chart["version"], chart["appVersion"]) == (version, version), f"Chart.yaml is not of version {version}")
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    cases = [None, *sorted((CHART / "ci").glob("*-values.yaml"))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_validators(lint, folder)
        rules = 0
        for case in cases:
            arguments = ["-f", case] if case else []
            run(helm(), "lint", "--strict", "--kube-version", f"{KUBERNETES}.0", CHART, *arguments)
            documents = render(*arguments)
            where = case.name if case else "defaults"
            check_schemas(documents, lint, folder, where)
            check_references(documents)
            values = merged(defaults, yaml.safe_load(case.read_text()) if case else {})
            longest, _ = check_settings(options.antiphon, documents)
            check_pod(documents, values, longest)
            rules += check_rules(documents, folder)
            print(f"ok  chart: {where}: {len(documents)} manifests, settings that antiphon accepts, calls of at most {longest} s")
        check(rules, "no case renders the alerts")
        check_adapter(folder)
        package = run(helm(), "package", CHART, "--destination", folder).split()[-1]
        packed = run("tar", "tzf", package).split()
        check({"antiphon/files/alerts.yml", "antiphon/files/sample.proto"} <= set(packed), f"in the package: {packed}")
        check(not any("/ci/" in file for file in packed), "the package carries the test values")
    refuse_bad_values()
    run(ROOT / "scripts/manifests", "--check")
    plain = [document for file in sorted(PLAIN.rglob("*.yaml")) if file.parent.name != "prometheus-adapter" for document in yaml.safe_load_all(file.read_text())]
    with tempfile.TemporaryDirectory() as name:
        check_schemas(plain, lint, Path(name), "deploy/kubernetes")
    print(f"ok  chart: deploy/kubernetes is what it gives, {len(plain)} manifests")


def merged(below, above):
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
