"""A plan as an override file for docker compose."""

import math
from pathlib import Path

import yaml

from segstream.planning.plan import Plan

_MIB = 1024 * 1024
_SESSION_ROOM = 2  # a replica may hold twice what it bears at the objective before it refuses


def write_compose_values(plan: Plan, path: Path) -> None:
    """Write what ``docker compose -f docker-compose.yml -f FILE up`` adds to the service."""
    memory_mib = math.ceil(plan.memory_bytes_per_replica / _MIB)
    banks_mib = max(1, math.ceil(plan.memory_bank_bytes_per_replica / _MIB))
    values = {
        "services": {
            "service": {
                "environment": {
                    "SEGSTREAM_MAX_SESSIONS": str(_SESSION_ROOM * plan.fullest_replica),
                    "SEGSTREAM_MAX_MEMORY_BYTES": str(banks_mib * _MIB),
                    "SEGSTREAM_NUM_THREADS": str(max(1, math.floor(plan.cores_per_replica))),
                },
                "deploy": {
                    "replicas": plan.num_replicas,
                    "resources": {
                        "limits": {
                            "cpus": f"{plan.cores_per_replica:g}",
                            "memory": f"{memory_mib}M",
                        }
                    },
                },
            }
        }
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
