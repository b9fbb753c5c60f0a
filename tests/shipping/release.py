"""The folder of a release, piece by piece; and the packed crate."""

import json
import os
import re
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path

from parts import ROOT, Crew, check, run

# Crates that tests and builds need and the binary has not.
NOT_SHIPPED = {"rcgen", "divan", "proptest", "prost-build", "rdkafka"}
SHIPPED = {"tokio", "rskafka", "rustls", "tonic", "prost-reflect", "mimalloc"}


def check_completions(folder):
    for shell, file in (("bash", "antiphon.bash"), ("zsh", "_antiphon"), ("fish", "antiphon.fish")):
        run(shell, "-n", folder / file)
    # What the shell would offer, asked of bash itself.
    script = f"""source {folder}/antiphon.bash
        offered() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _antiphon antiphon "${{!#}}" "${{COMP_WORDS[$#-2]}}"; echo "${{COMPREPLY[@]}}"; }}
        offered antiphon se; offered antiphon serve --boot; offered antiphon dlq re"""
    offered = run("bash", "-c", script).split("\n")
    check(offered[:3] == ["serve", "--bootstrap-servers", "replay"], f"bash offers {offered}")
    offered = run("fish", "-c", f"source {folder}/antiphon.fish; complete -C 'antiphon dlq re'")
    check(offered.startswith("replay"), f"fish offers {offered}")
    print("ok  release: bash, zsh and fish read their completions; bash and fish complete with them")


def check_manual(folder, antiphon):
    pages = sorted(folder.glob("*.1"))
    commands = re.findall(r"^  (\w+)  ", run(antiphon, "--help"), re.MULTILINE)
    missing = [name for name in commands if name != "help" and not (folder / f"antiphon-{name}.1").is_file()]
    check(len(commands) >= 8 and not missing, f"commands {commands}, without a page {missing}")
    for page in pages:
        # mandoc knows conventions as well as errors; it must find no error.
        run("mandoc", "-T", "lint", "-W", "error", page)
    text = run("mandoc", "-T", "utf8", folder / "antiphon-serve.1")
    plain = re.sub(r".\x08", "", text)
    check("--bootstrap-servers" in plain and "Exit codes" not in plain[:200], f"the page of serve:\n{plain[:600]}")
    run("mandoc", "-T", "utf8", "-W", "error", *pages)
    print(f"ok  release: {len(pages)} manual pages, without an error of mandoc's")


def check_sbom(file):
    sbom = json.loads(file.read_text())
    check((sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.5"), "not CycloneDX 1.5")
    check(sbom["metadata"]["component"]["name"] == "antiphon", f"it is of {sbom['metadata']['component']['name']}")
    locked = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    listed = {(c["name"], c["version"]): c for c in sbom["components"]}
    check(not set(listed) - set(locked), f"not in Cargo.lock: {set(listed) - set(locked)}")
    tree = run("cargo", "tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", cwd=ROOT)
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line} - {("antiphon", f"v{sbom['metadata']['component']['version']}")}
    linked = {(name, version.removeprefix("v")) for name, version in linked if name != "antiphon"}
    check(linked <= set(listed), f"in the binary and not in the SBOM: {linked - set(listed)}")
    names = {name for name, _ in listed}
    check(SHIPPED <= names and not NOT_SHIPPED & names, f"has {NOT_SHIPPED & names}, lacks {SHIPPED - names}")
    for key, component in listed.items():
        check(component.get("licenses"), f"{key} has no licence")
        hashes = {entry["content"] for entry in component.get("hashes", [])}
        check(hashes == {locked[key]}, f"{key}: {hashes} is not the checksum of Cargo.lock")
    check(str(ROOT) not in file.read_text() and "/tmp/" not in file.read_text(), "it names a folder of this machine")
    print(f"ok  release: SBOM of {len(listed)} crates, each with licence and checksum; all {len(linked)} that are linked")


def check_notes():
    said = run(ROOT / "scripts/release-notes", "9.9.9", ok=False)
    check("no section [9.9.9]" in said and "Unreleased" in said, f"for a version without a section it says {said}")
    notes = run(ROOT / "scripts/release-notes", "Unreleased")
    check(notes.startswith("### ") and "## [" not in notes, "the notes are more or less than their section")


def part(options):
    check_notes()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        command = [ROOT / "scripts/release", "--notes-of", "Unreleased", "--antiphon", options.antiphon]
        run(*command, out)
        check("is there already" in run(*command, out, ok=False), "it writes over a folder")
        run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=out)
        summed = {line.split()[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
        check(summed == {file.name for file in out.iterdir()} - {"SHA256SUMS"}, f"checksums of {summed}")
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        (archive,) = out.glob(f"antiphon-{version}-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(name, filter="data")
        folder = Path(name) / archive.name.removesuffix(".tar.gz")
        check(run(folder / "antiphon", "--version").split() == ["antiphon", version], "the packed binary")
        check_completions(folder / "completions")
        check_manual(folder / "man", folder / "antiphon")
        check_sbom(out / f"antiphon-{version}.cdx.json")
        again = Path(name) / "again.json"
        run(ROOT / "scripts/sbom", again)
        check(again.read_bytes() == (out / f"antiphon-{version}.cdx.json").read_bytes(), "the same tree gives another SBOM")
        check((out / f"antiphon-{version}.tgz").is_file(), "no chart")


def crate(options):
    """`cargo package`, then `cargo install` of what it packed, then the demo from there."""
    del options
    target = ROOT / "target" / "crate"
    run("cargo", "package", "--locked", "--no-verify", "--allow-dirty", "--quiet", "--target-dir", target, cwd=ROOT)
    (packed,) = (target / "package").glob("antiphon-*.crate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        source = folder / packed.name.removesuffix(".crate")
        run("cargo", "install", "--quiet", "--locked", "--path", source, "--root", folder / "root", "--target-dir", target, seconds=2400)
        home = folder / "elsewhere"
        home.mkdir()
        os.chdir(home)
        with Crew(folder) as crew:
            crew.start("demo", folder / "root/bin/antiphon", "demo", "--listen", "127.0.0.1:0")
            address = crew.said("demo", r"antiphon ready grpc=(\S+)").group(1)
            # The line that the demo prints, as it prints it, for a port of its own.
            line = crew.said("demo", r"grpcurl -plaintext -d '[^']+' \S+ payments.v1.PaymentService/Pay").group(0)
            check(address in line, f"the demo is at {address} and says {line}")
            grpcurl = ROOT / ".cache/bin/grpcurl-v1.9.4"
            if not grpcurl.is_file():
                run("go", "install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4", env={"GOBIN": str(folder)})
                grpcurl = folder / "grpcurl"
            done = subprocess.run(["bash", "-c", line.replace("grpcurl", str(grpcurl), 1)], capture_output=True, text=True, check=False, timeout=60)
            check("PAYMENT_STATE_APPROVED" in done.stdout, f"{line}: {done.stdout}{done.stderr}")
            check(crew.end("demo") == 0, "the demo did not end in good order")
    print("ok  crate: the packed crate installs, and its demo answers grpcurl without a checkout")
