"""What deploy/README.md says: its tables are what their command prints, its names exist, its commands work."""

import os
import re
import subprocess
import sys
from pathlib import Path

from server.files.store import FileStore, Quota
from server.gateway import make_gateway
from server.settings import PREFIX, Settings
from tests.server.telemetry.expressions import gateway_names, vllm_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "deploy" / "README.md").read_text()
CHECKPOINT = ROOT / "distill" / "miniature" / "checkpoints" / "base"
# Of vLLM or of Prometheus' client, not of the gateway.
FOREIGN = {"PROMETHEUS_MULTIPROC_DIR"}


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_sizing_tables_are_what_their_command_prints() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    printed = subprocess.check_output([sys.executable, ROOT / "deploy" / "sizing.py"], env=environment, text=True)

    assert len(printed.splitlines()) > 10
    assert printed in README


def test_every_setting_exists() -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", README)) - FOREIGN

    assert len(named) > 10
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_metric_reason_and_event_exists() -> None:
    gateway = make_gateway(Settings(checkpoint=CHECKPOINT))
    known = gateway_names(gateway.metrics.exposition().decode()) | vllm_names()
    gateway.threads.shutdown()
    for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"):
        known |= set(re.findall(r"record: (\S+)", path.read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    quoted = re.findall(r"`([^`\n]+)`", section("Alerts"))
    metrics = {name for text in quoted for name in re.findall(r"(?:\w+:)*(?:laid_|vllm:)[\w:]+", text)}
    words = {text for text in quoted if re.fullmatch(r"[a-z]+(_[a-z]+)+", text)} - metrics

    assert len(metrics) > 5
    assert not metrics - known
    assert len(words) > 10
    assert not {word for word in words if f'"{word}"' not in sources}


def test_a_backup_made_by_the_documented_commands_holds_every_file(tmp_path: Path) -> None:
    files, backup = tmp_path / "files", tmp_path / "backup"
    backup.mkdir()
    quota = Quota(num_files=10, num_bytes=10**6)
    store = FileStore(files, quota)
    kept = [
        store.add("alice", content, filename="a.png", purpose="vision", lifetime_seconds=3600).id
        for content in (b"one", b"two", b"two")
    ]
    (commands,) = re.findall(r"```sh\n(.*?)```", section("Backup"), re.S)

    subprocess.run(["sh", "-euc", commands], env=os.environ | {"FILES": str(files), "BACKUP": str(backup)}, check=True)

    restored = FileStore(backup, quota)
    contents = []
    for file_id in kept:
        with restored.open("alice", file_id) as file:
            contents.append(file.read())
    assert contents == [b"one", b"two", b"two"]
    assert restored.usage() == store.usage()


def test_every_link_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        if path:
            assert (ROOT / "deploy" / path).exists(), target
        else:
            assert anchor in anchors, target
