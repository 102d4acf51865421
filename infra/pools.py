"""Make work pools, or give those that exist their template again: python infra/pools.py POOL...

A run chooses neither its command nor its environment nor its folder: with the template that Prefect has for processes,
whoever may start a run runs what he likes. A pool of another type (docs/lab.md: Kubernetes) is left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from flows.remote import without_worker
from gtl_lightning.errors import UserError
from gtl_lightning.records import read_record

TYPE = "process"
TEMPLATE = Path(__file__).with_name("process-pool.json")


def main() -> None:
    """The command."""
    template = read_record(TEMPLATE, {"job_configuration": dict, "variables": dict})
    with get_client(sync_client=True) as client:
        for name in sys.argv[1:]:
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=name, type=TYPE, base_job_template=template))
            else:
                if pool.type == TYPE:
                    client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
            if said := without_worker(client, name):
                sys.stderr.write(f"{said}\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
