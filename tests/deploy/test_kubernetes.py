"""The Kubernetes manifests against the API's own schemas, and against each other."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
VERSIONS = ("1.30", "1.37")
RESOURCES: list[dict[str, Any]] = [
    resource for path in MANIFESTS for resource in yaml.safe_load_all(path.read_text())
]
WORKLOADS = [each for each in RESOURCES if each["kind"] in ("Deployment", "StatefulSet")]


def name_of(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = (each for each in RESOURCES if name_of(each) == f"{kind}/{name}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", RESOURCES, ids=name_of)
def test_a_resource_follows_the_schema(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_refuse_a_field_that_is_not_theirs() -> None:
    budget = named("PodDisruptionBudget", "service")
    spoilt = budget | {"spec": budget["spec"] | {"maxUnavailabel": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, VERSIONS[0], strict=True)


def test_every_manifest_is_applied() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [f"kubernetes/{path.name}" for path in MANIFESTS]


def test_kustomize_puts_image_and_configuration_in() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    built = subprocess.run(
        ["kubectl", "kustomize", DEPLOY], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    resources = {name_of(each): each for each in yaml.safe_load_all(built.stdout)}
    assert {each["metadata"].get("namespace", "segstream") for each in resources.values()} == {
        "segstream"
    }
    [replica] = resources["StatefulSet/service"]["spec"]["template"]["spec"]["containers"]
    assert replica["image"].startswith("registry.example.org/segstream:")
    [volume] = resources["Deployment/envoy"]["spec"]["template"]["spec"]["volumes"]
    configuration = resources[f"ConfigMap/{volume['configMap']['name']}"]
    assert configuration["data"]["envoy.yaml"] == (DEPLOY / "envoy/envoy.yaml").read_text()


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_a_selector_finds_the_pods_of_its_workload(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    "resource",
    [each for each in RESOURCES if each["kind"] in ("Service", "PodDisruptionBudget")],
    ids=name_of,
)
def test_a_selector_of_pods_finds_one_workload(resource: dict[str, Any]) -> None:
    selector = resource["spec"]["selector"]
    wanted = selector.get("matchLabels", selector).items()
    found = [
        each
        for each in WORKLOADS
        if wanted <= each["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert len(found) == 1


def test_a_service_s_ports_are_those_of_its_pods() -> None:
    for service in (each for each in RESOURCES if each["kind"] == "Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        [workload] = (each for each in WORKLOADS if each["metadata"]["name"] == component)
        [container] = workload["spec"]["template"]["spec"]["containers"]
        named_ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named_ports


def test_the_scaler_has_the_replicas_to_itself() -> None:
    target = named("HorizontalPodAutoscaler", "service")["spec"]["scaleTargetRef"]
    assert "replicas" not in named(target["kind"], target["name"])["spec"]


def test_a_replica_has_time_to_drain() -> None:
    pod = named("StatefulSet", "service")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    settings = {each["name"]: each.get("value", "") for each in container["env"]}
    [pause] = re.findall(r"\d+", " ".join(container["lifecycle"]["preStop"]["exec"]["command"]))
    drain = float(settings["SEGSTREAM_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + 2 * drain
