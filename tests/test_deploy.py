"""deploy/: what kustomize renders is valid and holds together; the Dockerfile fits an exported
bento. No cluster, no image build.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Packaged

kubernetes_validate = pytest.importorskip("kubernetes_validate")
KUBECTL = Path(sys.executable).with_name("kubectl")
pytestmark = pytest.mark.skipif(not KUBECTL.exists(), reason="kubectl is not installed (extra: ci)")
KUBERNETES, POD = "1.31", {"app.kubernetes.io/name": "longrec-ranker"}


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict]:
    """kind -> manifest, of the overlay."""
    command = [KUBECTL, "kustomize", "deploy/kubernetes/overlays/production"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def test_every_manifest_is_valid_and_in_the_namespace(rendered) -> None:
    assert set(rendered) == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    for manifest in rendered.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        assert manifest["metadata"]["namespace"] == "longrec"
    rendered["Deployment"]["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):  # the validator sees a misspelt field
        kubernetes_validate.validate(rendered["Deployment"], KUBERNETES, strict=True)
    del rendered["Deployment"]["spec"]["template"]["spec"]["containers"][0]["readinesProbe"]


def test_everything_selects_the_pods_and_the_autoscaler_the_deployment(rendered) -> None:
    spec = rendered["Deployment"]["spec"]
    assert POD.items() <= spec["template"]["metadata"]["labels"].items()
    selectors = [
        spec["selector"]["matchLabels"],
        rendered["Service"]["spec"]["selector"],
        *(
            rendered[kind]["spec"][name]["matchLabels"]
            for kind, name in (
                ("PodDisruptionBudget", "selector"),
                ("NetworkPolicy", "podSelector"),
            )
        ),
    ]
    assert all(selector == POD for selector in selectors)
    target = rendered["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment",
        rendered["Deployment"]["metadata"]["name"],
    )
    redis = rendered["NetworkPolicy"]["spec"]["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    assert redis == {"app.kubernetes.io/name": "redis"}
    settings = [
        each["configMapRef"]["name"]
        for each in spec["template"]["spec"]["containers"][0]["envFrom"]
    ]
    assert settings == [
        rendered["ConfigMap"]["metadata"]["name"]
    ]  # a changed setting rolls the pods


def test_the_pod_is_locked_down_and_its_probes_ask_what_the_service_answers(rendered) -> None:
    pod = rendered["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    locks = container["securityContext"]
    assert (
        locks["readOnlyRootFilesystem"]
        and not locks["allowPrivilegeEscalation"]
        and locks["capabilities"]["drop"] == ["ALL"]
    )
    assert (
        container["resources"]["requests"].keys() == {"cpu", "memory"}
        and "memory" in container["resources"]["limits"]
    )
    ports = {port["name"] for port in container["ports"]}
    probes = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    assert {probe["port"] for probe in probes.values()} | {
        rendered["Service"]["spec"]["ports"][0]["targetPort"]
    } <= ports
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert (
        mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        and mounts["token"]["readOnly"]
    )


def test_the_models_are_where_the_pipeline_keeps_them(rendered) -> None:
    """The step `package` has BENTOML_HOME at `bentoml` of the home volume
    (pipelines/platform.py).
    """
    (container,) = rendered["Deployment"]["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    (workdir,) = (
        mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "home"
    )
    assert given["LONGREC_HOME"] == workdir and given["BENTOML_HOME"] == f"{workdir}/bentoml"
    steps = next(
        yaml.safe_load_all((ROOT / "pipelines" / "compiled" / "training.yaml").read_text())
    )["deploymentSpec"]["executors"]
    assert {"name": "BENTOML_HOME", "value": "/var/lib/longrec/bentoml"} in steps["exec-package"][
        "container"
    ]["env"]


def test_each_pod_has_temporary_files_of_its_own(rendered) -> None:
    """Metrics of the workers lie below TMPDIR, and all pods share the volume of the models."""
    pod = rendered["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    names = {variable["name"] for variable in container["env"]}
    assert "TMPDIR" not in names
    (scratch,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == scratch["name"])
    assert "emptyDir" in volume


def test_the_image_runs_as_the_user_that_the_pod_asks_for(rendered) -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    pod = rendered["Deployment"]["spec"]["template"]["spec"]
    assert re.search(r"^USER (\d+):(\d+)$", text, re.M)[1] == str(
        pod["securityContext"]["runAsUser"]
    )
    assert (
        re.search(r"^ARG BASE=python:3\.11\.\d+-slim", text, re.M)
        and "HEALTHCHECK" in text
        and ":latest" not in text
    )
    assert re.search(r"^EXPOSE (\d+)$", text, re.M)[1] == str(
        pod["containers"][0]["ports"][0]["containerPort"]
    )


@pytest.mark.slow
def test_the_image_finds_in_an_exported_bento_what_it_copies(packaged: Packaged) -> None:
    folder = Path(packaged.report.path)
    sources = re.findall(
        r"^COPY (?!--from)(?:--\S+ )*(\S+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.M
    )
    assert sources == ["env/python", "."] and all((folder / source).exists() for source in sources)
    requirements = (folder / "env/python/requirements.txt").read_text()
    assert (
        "torch==" in requirements
        and "bentoml" in requirements.lower()
        and list((folder / "env/python/wheels").glob("longrec-*.whl"))
    )


@pytest.fixture(scope="module")
def rights() -> dict[str, dict]:
    """kind -> manifest, of the service account of the pipelines."""
    command = [KUBECTL, "kustomize", "deploy/kubernetes/pipelines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def allowed(role: dict) -> set[tuple[str, str]]:
    """Pairs of a verb and a resource."""
    return {
        (verb, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def test_one_manifest_has_the_rights_that_all_pipelines_need(rights) -> None:
    assert set(rights) == {
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    }
    for manifest in rights.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    account = {"kind": "ServiceAccount", "name": "longrec-pipelines", "namespace": "longrec"}
    for kind in ("Role", "ClusterRole"):
        (subject,) = rights[f"{kind}Binding"]["subjects"]
        assert subject == account
        assert rights[f"{kind}Binding"]["roleRef"]["name"] == rights[kind]["metadata"]["name"]
    assert ("get", "clustertrainingruntimes") in allowed(rights["ClusterRole"])
    assert allowed(rights["Role"]) >= {
        ("create", "workflowtaskresults"),
        ("patch", "workflowtaskresults"),
        ("get", "workflows"),
        ("get", "configmaps"),
        ("get", "secrets"),
        ("list", "pods"),
        ("get", "pods/log"),
        ("create", "trainjobs"),
        ("get", "trainjobs"),
        ("list", "trainjobs"),
        ("get", "trainingruntimes"),
    }


def test_no_right_is_wider_than_it_must_be(rights) -> None:
    for kind in ("Role", "ClusterRole"):
        assert "*" not in str(rights[kind]["rules"])
    (secrets,) = (rule for rule in rights["Role"]["rules"] if rule["resources"] == ["secrets"])
    assert secrets["resourceNames"] == ["mlpipeline-minio-artifact"]


def test_the_production_overlay_names_redis_where_the_network_policy_allows_it(rendered) -> None:
    assert rendered["ConfigMap"]["data"]["LONGREC_REDIS"] == "redis:6379"
    (redis,) = (
        rule
        for rule in rendered["NetworkPolicy"]["spec"]["egress"]
        if {"port": 6379} in rule["ports"]
    )
    assert redis["to"]
