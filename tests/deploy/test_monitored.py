"""The overlay `monitored`: valid by the schemas of its operators, each setting in one place."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import manifests

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonschema = pytest.importorskip("jsonschema")
pytestmark = pytest.mark.skipif(
    not manifests.KUBECTL.exists(), reason="kubectl is not installed (extra: ci)"
)
KUBERNETES = "1.31"
CUSTOM_KINDS = {"PrometheusRule", "ScaledObject", "ServiceMonitor"}
BURN_RATES = Path(__file__).with_name("burn_rates.yaml")


@pytest.fixture(scope="module")
def rendered() -> dict[str, manifests.Manifest]:
    return manifests.render(manifests.FOLDER / "overlays" / "monitored")


@pytest.fixture(scope="module")
def production() -> dict[str, manifests.Manifest]:
    return manifests.render(manifests.FOLDER / "overlays" / "production")


def validate(manifest: manifests.Manifest) -> None:
    definition = manifests.custom_kinds().get(manifest["kind"])
    if definition is None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    assert manifest["apiVersion"] == definition["apiVersion"]
    schema = manifests.without_unknown_fields(definition["schema"])
    jsonschema.Draft202012Validator(schema).validate(manifest)


def test_every_manifest_is_valid_by_its_published_schema(rendered) -> None:
    assert set(rendered) > CUSTOM_KINDS
    for manifest in rendered.values():
        validate(manifest)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ScaledObject", {"minReplicas": 3}),
        ("ScaledObject", {"triggers": "cpu"}),
        ("ServiceMonitor", {"endpoints": [{"honourLabels": True}]}),
        ("PrometheusRule", {"groups": [{"name": "a", "rules": [{"alert": "without expr"}]}]}),
    ],
)
def test_a_wrong_field_is_found(rendered, kind: str, change: dict) -> None:
    manifest = copy.deepcopy(rendered[kind])
    manifest["spec"].update(change)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_one_autoscaler_has_the_bounds_of_the_one_that_it_replaces(rendered, production) -> None:
    assert "HorizontalPodAutoscaler" not in rendered
    replaced = production["HorizontalPodAutoscaler"]["spec"]
    scaler = rendered["ScaledObject"]["spec"]
    assert scaler["scaleTargetRef"] == {"name": rendered["Deployment"]["metadata"]["name"]}
    assert scaler["minReplicaCount"] == replaced["minReplicas"]
    assert scaler["maxReplicaCount"] == replaced["maxReplicas"]
    assert scaler["minReplicaCount"] <= scaler["fallback"]["replicas"]
    behavior = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == replaced["behavior"]


def test_the_service_monitor_finds_the_pods_and_their_port(rendered) -> None:
    monitor = rendered["ServiceMonitor"]["spec"]
    service = rendered["Service"]
    selected = monitor["selector"]["matchLabels"].items()
    assert selected <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_pods_are_scraped_once(rendered, production) -> None:
    template = production["Deployment"]["spec"]["template"]["metadata"]
    assert template["annotations"]["prometheus.io/scrape"] == "true"
    assert "annotations" not in rendered["Deployment"]["spec"]["template"]["metadata"]


def test_only_the_monitored_pods_may_send_traces(rendered, production) -> None:
    def ports(manifest: manifests.Manifest) -> set[int]:
        rules = manifest["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert ports(production["NetworkPolicy"]) == {53, 6379}
    assert ports(rendered["NetworkPolicy"]) == {53, 6379, 4318}


def test_the_namespace_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(manifests.FOLDER, folder)
    path = folder / "overlays" / "production" / "kustomization.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("namespace: longrec", "namespace: elsewhere"), encoding="utf-8")
    rendered = manifests.render(folder / "overlays" / "monitored")
    assert {each["metadata"]["namespace"] for each in rendered.values()} == {"elsewhere"}
    query = rendered["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    assert 'namespace="elsewhere"' in query


@pytest.fixture(scope="module")
def rule_folder(rendered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    folder = tmp_path_factory.mktemp("rules")
    rules = manifests.alerting_rules(rendered["PrometheusRule"])
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    shutil.copy(BURN_RATES, folder)
    return folder


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_promtool_finds_no_fault_in_the_rules(rule_folder: Path) -> None:
    done = promtool("check", "rules", "--lint-fatal", "alerts.yaml", folder=rule_folder)
    assert done.returncode == 0, done.stderr


def test_the_alerts_fire_at_the_burn_rates_that_they_name(rule_folder: Path) -> None:
    done = promtool("test", "rules", "burn_rates.yaml", folder=rule_folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_severity_and_an_entry_in_the_guide(rendered) -> None:
    guide = (manifests.ROOT / "docs" / "guides" / "operate.md").read_text(encoding="utf-8")
    groups = rendered["PrometheusRule"]["spec"]["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 9
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert f"`{alert['alert']}`" in guide, alert["alert"]
