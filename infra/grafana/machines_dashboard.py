"""The dashboard of machines: Ray's own metrics of the nodes and processes that runs use."""

from __future__ import annotations

from onibi.infra.grafana.panels import Choice, Dashboard, Panel, Query, Section

_BYTES = "bytes"


def _of_node(metric: str, legend: str = "") -> Query:
    """Of each machine, by its address."""
    return Query(expression=f'max by (ip) (ray_{metric}{{ip=~"$node"}})', legend=f"{{{{ip}}}} {legend}".strip())


def _of_role(metric: str) -> Query:
    """Sum over the processes of a role; Ray names actors by their class."""
    return Query(expression=f'sum by (Component) (ray_component_{metric}{{ip=~"$node"}})', legend="{{Component}}")


def _of_gpu(metric: str, factor: int = 1) -> Query:
    """Of each GPU; those of Ray's in MiB times ``factor``."""
    selector = f'max by (ip, GpuIndex) (ray_node_{metric}{{ip=~"$node"}})'
    return Query(expression=selector if factor == 1 else f"{selector} * {factor}", legend="{{ip}} GPU {{GpuIndex}}")


_MACHINES = Section(
    title="Machines",
    panels=[
        Panel(title="CPU", queries=[_of_node("node_cpu_utilization")], unit="percent", least=0.0, most=100.0),
        Panel(
            title="Memory",
            queries=[_of_node("node_mem_used", "used"), _of_node("node_mem_total", "there")],
            unit=_BYTES,
            least=0.0,
        ),
        Panel(
            title="Shared memory",
            queries=[_of_node("node_mem_shared_bytes")],
            unit=_BYTES,
            says="Replay rings and Ray's object store lie in it; /dev/shm has half of the memory by default.",
            least=0.0,
        ),
        Panel(title="Disk, free", queries=[_of_node("node_disk_free")], unit=_BYTES, least=0.0),
        Panel(
            title="Network",
            queries=[
                _of_node("node_network_receive_speed", "received"),
                _of_node("node_network_send_speed", "sent"),
            ],
            unit="Bps",
        ),
        Panel(
            title="Answers Prometheus",
            queries=[Query(expression='max by (instance) (up{job="ray"})', legend="{{instance}}")],
            kind="state-timeline",
            states=[(0, "no", "red"), (1, "yes", "green")],
        ),
    ],
)
_RAY = Section(
    title="Ray",
    panels=[
        Panel(title="CPU by role", queries=[_of_role("cpu_percentage")], unit="percent", width=12),
        Panel(
            title="Memory by role",
            queries=[_of_role("uss_bytes")],
            unit=_BYTES,
            says="Each process's own, without what it shares.",
            width=12,
        ),
        Panel(
            title="Object store",
            queries=[
                Query(expression="sum(ray_object_store_used_memory)", legend="used"),
                Query(expression="sum(ray_object_store_available_memory)", legend="free"),
                Query(expression="sum(ray_object_store_fallback_memory)", legend="on disk, for want of /dev/shm"),
            ],
            unit=_BYTES,
        ),
        Panel(
            title="Actors",
            queries=[Query(expression="sum by (State) (ray_gcs_actors_count)", legend="{{State}}")],
        ),
        Panel(title="Nodes", queries=[Query(expression="sum(ray_cluster_active_nodes)", legend="nodes")]),
    ],
)
_GPUS = Section(
    title="GPUs",
    folded=True,
    panels=[
        Panel(title="GPU", queries=[_of_gpu("gpus_utilization")], unit="percent", width=12, least=0.0, most=100.0),
        Panel(title="GPU memory, used", queries=[_of_gpu("gram_used", 2**20)], unit=_BYTES, width=12, least=0.0),
    ],
)

MACHINES = Dashboard(
    uid="onibi-machines",
    title="Onibi machines",
    says="Ray's own metrics of the machines and processes that runs use.",
    choices=[Choice(name="node", label="ip", metric="ray_node_cpu_utilization")],
    sections=[_MACHINES, _RAY, _GPUS],
)
