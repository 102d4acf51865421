"""prefect.yaml, compose.yaml, the images and the Kubernetes template, checked without starting any of them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.flows import Flow
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import find_placeholders

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"

FLOWS = ("pipeline", "scarcity-sweep", "ablation", "markov-study")
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
TEMPLATE = json.loads((INFRA / "kubernetes" / "job-template.json").read_text())


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    path, _, name = deployment["entrypoint"].partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    found = getattr(module, name)
    assert isinstance(found, Flow)
    return found


def named(deployment: dict[str, Any]) -> str:
    return f"{flow_of(deployment).name}/{deployment['name']}"


# --- deployments


def test_prefect_reads_the_file() -> None:
    PrefectYamlModel.model_validate(yaml.safe_load((ROOT / "prefect.yaml").read_text()))


def test_there_is_a_deployment_of_every_flow_for_this_machine_and_for_gpus() -> None:
    names = [named(deployment) for deployment in DEPLOYMENTS]
    assert len(names) == len(set(names))
    expected = {f"{flow}/{place}" for flow in FLOWS for place in ("local", "gpu")}
    assert set(names) == expected | {"stage/gpu"}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=named)
def test_parameters_are_those_of_the_flow_and_valid(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    parameters = {"stage": "source"} if flow.name == "stage" else deployment["parameters"]
    flow.validate_parameters(parameters)


def test_a_flow_that_waits_for_gpu_stages_takes_no_gpu_slot() -> None:
    from flows.parameters import POOL_DEPLOYMENTS

    by_name = {named(deployment): deployment for deployment in DEPLOYMENTS}
    assert POOL_DEPLOYMENTS["gpu"] in by_name
    assert by_name["stage/gpu"]["work_pool"]["name"] == "gpu"
    waiting = [deployment for deployment in DEPLOYMENTS if deployment.get("parameters", {}).get("where") == "gpu"]
    assert waiting
    assert all(deployment["work_pool"]["name"] == "cpu" for deployment in waiting)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=named)
def test_every_parameter_is_described_in_the_form(deployment: dict[str, Any]) -> None:
    properties = flow_of(deployment).parameters.properties
    assert properties
    assert all(parameter.get("description") for parameter in properties.values())


def test_deploy_makes_the_pools_that_are_deployed_to() -> None:
    pools = re.search(r"for pool in ([\w ]+);", (INFRA / "deploy.sh").read_text())
    assert pools is not None
    assert set(pools.group(1).split()) == {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS}


# --- compose


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"buckets", "deploy"}


def test_compose_has_the_services_of_a_lab() -> None:
    assert {"postgres", "store", "mlflow", "prefect", "worker-cpu", "worker-gpu-0"} <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_published_ports_are_on_loopback(name: str) -> None:
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_every_lasting_service_has_a_health_check_and_restarts(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_exist_and_their_condition_can_come_true(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert how["condition"] == expected


def test_dependencies_have_no_cycle() -> None:
    from graphlib import TopologicalSorter

    TopologicalSorter({name: service.get("depends_on", {}) for name, service in SERVICES.items()}).prepare()


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert (INFRA / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_secrets_come_from_the_environment_and_are_demanded() -> None:
    text = (INFRA / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    documented = set(re.findall(r"^(\w+)=", (INFRA / ".env.example").read_text(), re.MULTILINE))
    assert used == documented
    for name in ("POSTGRES_PASSWORD", "STORE_USER", "STORE_PASSWORD"):
        assert f"${{{name}:?" in text
        assert not re.search(rf"\$\{{{name}(\}}|:-)", text)
    secret_keys = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|_USER$")
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert not secret_keys.search(key) or str(value).startswith("${")
        assert "${" not in str(service.get("command", "")) + str(service.get("entrypoint", ""))


def test_gpu_workers_have_one_device_and_one_run_and_start_only_on_demand() -> None:
    workers = {name: service for name, service in SERVICES.items() if name.startswith("worker-gpu")}
    for service in workers.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert len(device["device_ids"]) == 1
        assert device["capabilities"] == ["gpu"]
        assert "--limit 1 " in service["command"]
        assert service["profiles"] == ["gpu"]


def test_images_are_built_from_targets_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    for service in SERVICES.values():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":[\w.-]*\d", service["image"]), "a version, not latest"


def test_every_database_that_is_connected_to_is_created() -> None:
    created = set(re.findall(r"CREATE DATABASE (\w+)", (INFRA / "postgres" / "databases.sql").read_text()))
    used = set(re.findall(r"@postgres/(\w+)", (INFRA / "compose.yaml").read_text()))
    assert used == created


def test_the_driver_of_every_database_is_installed() -> None:
    """SQLAlchemy chooses the driver from the address; a later release chose another for the same one."""
    from sqlalchemy.engine import make_url

    addresses = re.findall(r"(postgresql[+\w]*://)[^@]+@(postgres/\w+)", (INFRA / "compose.yaml").read_text())
    assert len(addresses) == 2
    for scheme, rest in addresses:
        make_url(f"{scheme}user:password@{rest}").get_dialect().import_dbapi()


# --- Kubernetes


def test_prefect_accepts_the_job_template() -> None:
    WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=TEMPLATE)


def test_prefect_refuses_the_template_when_a_variable_is_missing() -> None:
    variables = {key: value for key, value in TEMPLATE["variables"]["properties"].items() if key != "gpus"}
    broken = {**TEMPLATE, "variables": {**TEMPLATE["variables"], "properties": variables}}
    with pytest.raises(ValueError, match="gpus"):
        WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=broken)


def test_every_variable_is_used_described_and_has_a_valid_default() -> None:
    Draft202012Validator.check_schema(TEMPLATE["variables"])
    properties = TEMPLATE["variables"]["properties"]
    used = {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == set(properties)
    for name, schema in properties.items():
        assert schema["description"], name
        if "default" in schema:
            Draft202012Validator(schema).validate(schema["default"])


def test_the_job_asks_for_gpus_and_limits_them_alike() -> None:
    (container,) = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert TEMPLATE["variables"]["properties"]["gpus"]["minimum"] == 1


def test_mounts_have_volumes() -> None:
    pod = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes
