"""The node message: id, and metadata with its precedence and its JSON values."""

from dataclasses import replace

from ztunnel.config.model import Config
from ztunnel.pb.envoy.service.discovery.v3 import Node
from ztunnel.xds.node import MAX_DEPTH, encode_node, node_metadata

CONFIG = replace(
    Config(), pod_name="ztunnel-x", pod_namespace="istio-system", local_ip="10.0.0.1", local_node="node-1"
)


def test_the_id_is_of_a_ztunnel_and_the_metadata_says_where_it_runs():
    problems: list[str] = []
    node = Node.parse(encode_node(CONFIG, problems))
    assert node.id == "ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local"
    assert node.metadata is not None
    assert node.metadata.to_dict() == {
        "NAME": "ztunnel-x",
        "NAMESPACE": "istio-system",
        "INSTANCE_IPS": "10.0.0.1",
        "NODE_NAME": "node-1",
    }
    assert (node.cluster, node.build_version, problems) == ("", "", [])


def test_later_sources_override_earlier_ones():
    config = replace(
        CONFIG,
        proxy_metadata={"NAME": "from-proxy", "CLUSTER_ID": "c1", "X": "text"},
        node_metadata_json={"X": {"a": [1, None, True, "s", {}]}, "N": 7},
    )
    assert node_metadata(config)["NAME"] == "from-proxy"
    metadata = Node.parse(encode_node(config, [])).metadata
    assert metadata is not None
    shown = metadata.to_dict()
    assert shown["CLUSTER_ID"] == "c1"
    assert shown["X"] == {"a": [1.0, None, True, "s", {}]}
    assert shown["N"] == 7.0


def test_a_value_that_protobuf_cannot_carry_is_left_out_and_named():
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    problems: list[str] = []
    config = replace(CONFIG, node_metadata_json={"DEEP": deep, "BIG": 10**400, "OK": 1})
    metadata = Node.parse(encode_node(config, problems)).metadata
    assert metadata is not None
    assert set(metadata.fields) == {"NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME", "OK"}
    assert [problem.split(" is ")[0] for problem in problems] == ["metadata DEEP", "metadata BIG"]
