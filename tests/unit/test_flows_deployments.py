"""prefect.yaml, compose.yaml, the images and the Kubernetes template, checked without starting any of them."""

from __future__ import annotations

import importlib
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
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
    without, with_gpus = re.findall(r"infra/pools\.py ([\w ]+)$", (INFRA / "deploy.sh").read_text(), re.MULTILINE)
    assert set(with_gpus.split()) == {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS}
    (pattern,) = re.findall(r"deploy --name '(.+)'$", (INFRA / "deploy.sh").read_text(), re.MULTILINE)
    chosen = [deployment for deployment in DEPLOYMENTS if fnmatch(named(deployment), pattern)]
    assert chosen == [deployment for deployment in DEPLOYMENTS if "gpu" not in deployment["tags"]]
    assert set(without.split()) == {deployment["work_pool"]["name"] for deployment in chosen}


# --- compose


SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"buckets", "deploy"}
SECRETS = ("POSTGRES_PASSWORD", "LAB_PASSWORD", "STORE_PASSWORD", "MLFLOW_STORE_PASSWORD", "DVC_STORE_PASSWORD")
WORKERS = [name for name in SERVICES if name.startswith(("worker", "deploy"))]


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
    for name in SECRETS:
        assert f"${{{name}:?" in text
        assert not re.search(rf"\$\{{{name}(\}}|:-)", text)
    secret_keys = re.compile(r"PASSWORD|SECRET(?!.*KEY_ID)|SECRET_ACCESS_KEY|AUTH_STRING")
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert not secret_keys.search(key) or re.match(r"(gtl:)?\$\{", str(value))
        assert "${" not in str(service.get("command", "")) + str(service.get("entrypoint", ""))


def test_gpu_workers_have_one_device_and_one_run_and_start_only_on_demand() -> None:
    workers = {name: service for name, service in SERVICES.items() if name.startswith("worker-gpu")}
    for service in workers.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert len(device["device_ids"]) == 1
        assert device["capabilities"] == ["gpu"]
        assert "--limit 1 " in service["command"]
        assert service["profiles"] == ["gpu"]


# --- who may do what, in compose


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_is_root_or_gains_rights(name: str) -> None:
    service = SERVICES[name]
    user = re.sub(r"\$\{\w+:-(\d+)\}", r"\1", str(service["user"]))
    assert user == "postgres" or all(int(number) > 0 for number in user.split(":"))
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("cap_add")
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert any(str(mount).startswith("/tmp") for mount in service["tmpfs"])


def variables(name: str) -> str:
    return json.dumps(SERVICES[name].get("environment", {}))


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_its_own_key_of_the_store_and_no_database(name: str) -> None:
    told = SERVICES[name]["environment"]
    assert told["AWS_ACCESS_KEY_ID"] == "dvc"
    assert "DVC_STORE_PASSWORD" in told["AWS_SECRET_ACCESS_KEY"]
    assert not re.search(r"\{STORE_PASSWORD|MLFLOW_STORE_PASSWORD|POSTGRES_PASSWORD", variables(name))


HOLDERS = {
    "{STORE_PASSWORD": {"buckets"},
    "{MLFLOW_STORE_PASSWORD": {"mlflow"},
    "{POSTGRES_PASSWORD": {"postgres", "mlflow", "prefect"},
    "{LAB_PASSWORD": {"mlflow", "prefect", *WORKERS},
}


@pytest.mark.parametrize("secret", HOLDERS)
def test_a_secret_is_told_to_those_who_need_it(secret: str) -> None:
    assert {name for name in SERVICES if secret in variables(name)} == HOLDERS[secret]


def test_a_key_of_the_store_opens_its_own_bucket_alone() -> None:
    content = re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", COMPOSE["configs"]["keys"]["content"])
    keys = {identity["name"]: identity for identity in json.loads(content)["identities"]}
    assert keys["admin"]["actions"] == ["Admin"]
    for bucket in ("mlflow", "dvc"):
        assert keys[bucket]["credentials"] == [{"accessKey": bucket, "secretKey": f"{bucket.upper()}_STORE_PASSWORD"}]
        assert sorted(keys[bucket]["actions"]) == [f"{what}:{bucket}" for what in ("List", "Read", "Tagging", "Write")]
    assert keys.keys() == {"admin", "mlflow", "dvc"}


def test_the_stores_inner_ports_stay_in_its_container() -> None:
    command = SERVICES["store"]["command"]
    assert "-ip.bind=127.0.0.1" in command
    assert "s3.ip.bind" not in command
    assert SERVICES["store-port"]["network_mode"] == "service:store"


def test_a_forwarded_port_says_what_the_other_says() -> None:
    import socket
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_server(("127.0.0.1", 0)) as probe:
        listen, port = probe.getsockname()[1], there.getsockname()[1]
        probe.close()
        command = [sys.executable, str(INFRA / "forward.py"), str(listen), "127.0.0.1", str(port)]
        with subprocess.Popen(command) as process:
            try:
                client = connected(listen)
                server, _ = there.accept()
                client.sendall(b"ask" * 100_000)
                client.shutdown(socket.SHUT_WR)
                asked = b"".join(iter(lambda: server.recv(1 << 16), b""))
                server.sendall(asked[::-1])
                server.close()
                assert b"".join(iter(lambda: client.recv(1 << 16), b"")) == b"ksa" * 100_000
                client.close()
            finally:
                process.kill()


def connected(port: int) -> Any:
    import socket
    import time

    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.1)
    raise AssertionError("it does not listen")


LOGIN = "gtl:${LAB_PASSWORD:?set LAB_PASSWORD}"
SERVERS = {
    "prefect": {
        "PREFECT_SERVER_API_AUTH_STRING": LOGIN,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200,http://localhost:4200",
    },
    "mlflow": {
        "MLFLOW_TRACKING_USERNAME": "gtl",
        "MLFLOW_TRACKING_PASSWORD": LOGIN.removeprefix("gtl:"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000,127.0.0.1:5000,localhost:5000",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:5000,http://localhost:5000",
    },
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_asks_for_the_password_and_knows_its_own_pages(name: str) -> None:
    assert SERVERS[name].items() <= SERVICES[name]["environment"].items()
    assert "tracker:tracker" in SERVICES["mlflow"]["command"]
    assert all(SERVICES[worker]["environment"]["PREFECT_API_AUTH_STRING"] == LOGIN for worker in WORKERS)


VULNERABLE = ("minio/",)  # no image since CVE-2025-62506, and no maintained release


def test_no_image_is_known_to_be_open() -> None:
    used = re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    used += [service["image"] for service in SERVICES.values()]
    assert not [image for image in used if image.startswith(VULNERABLE)]


def test_images_run_as_a_user() -> None:
    """The last USER of each target that is run; a target that only builds has none."""
    stages = re.split(r"^FROM ", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    last = {}
    for stage in stages:
        name = re.match(r"\S+ AS (\S+)", stage)
        assert name is not None
        last[name[1]] = re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1:]
    assert {last[target][0] for target in ("cpu", "gpu", "store")} == {"1000:1000"}


# --- images


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


# --- what a run may choose, and as whom it runs

PROCESS = json.loads((INFRA / "process-pool.json").read_text())
FIXED = (
    "command", "env", "working_dir", "image", "image_pull_policy", "namespace", "service_account_name", "secret",
    "checkout_claim", "args", "entrypoint", "volumes", "user",
)  # fmt: skip


@pytest.mark.parametrize("template", [PROCESS, TEMPLATE], ids=["process", "kubernetes"])
@pytest.mark.parametrize("name", FIXED)
def test_a_run_does_not_choose_what_is_run_or_as_whom(template: dict[str, Any], name: str) -> None:
    schema = template["variables"]
    assert schema["additionalProperties"] is False
    with pytest.raises(ValidationError):
        Draft202012Validator(schema).validate({name: "x"})
    assert name not in {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    # Prefect's workers lay a variable `env` over one that the configuration has.
    assert "env" not in template["job_configuration"]


def test_prefect_accepts_the_process_template() -> None:
    WorkPoolCreate(name="cpu", type="process", base_job_template=PROCESS)


RIGHTS = {
    ("runAsNonRoot",): True,
    ("runAsUser",): 1000,
    ("runAsGroup",): 1000,
    ("seccompProfile", "type"): "RuntimeDefault",
}
CONTAINER_RIGHTS = {
    ("allowPrivilegeEscalation",): False,
    ("readOnlyRootFilesystem",): True,
    ("capabilities", "drop"): ["ALL"],
}


def test_a_pod_has_no_rights_that_it_does_not_need() -> None:
    from functools import reduce

    pod = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    for path, value in RIGHTS.items():
        assert reduce(dict.__getitem__, path, pod["securityContext"]) == value
    for container in pod["containers"]:
        for path, value in CONTAINER_RIGHTS.items():
            assert reduce(dict.__getitem__, path, container["securityContext"]) == value
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod["volumes"])


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
