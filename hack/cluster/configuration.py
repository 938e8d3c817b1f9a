"""The configuration files of the node's parts, as pure functions. JSON is valid YAML, so most of it is JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .layout import (
    BRIDGE,
    CLUSTER_DOMAIN,
    DNS_SERVICE_IP,
    NODE_NAME,
    POD_SUBNET,
    SERVICE_SUBNET,
    Ports,
)

NETWORK = "finetune-pods"
NAT_TABLE = "finetune-cluster-nat"


def containerd(root: Path, pause_image: str) -> str:
    """containerd for pods and for BuildKit, with all its files below ``root``.

    ``restrict_oom_score_adj``: otherwise no container starts in a sandbox without CAP_SYS_RESOURCE.
    ``SystemdCgroup = false``: there may be no systemd.
    """
    cri = "plugins.'io.containerd.cri.v1.runtime'"
    return f"""\
version = 3
root = "{root}/root"
state = "{root}/state"
imports = []
[grpc]
  address = "{root}/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause_image}"
[plugins.'io.containerd.internal.v1.opt']
  path = "{root}/opt"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[{cri}]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [{cri}.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{root}/cni"
    use_internal_loopback = true
  [{cri}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [{cri}.containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = "{root}/state/runc"
"""


def buildkit(root: Path, containerd_socket: Path, cache_limit: int) -> str:
    """BuildKit on the node's own containerd, so that a built image is available without push or import.

    ``max-parallelism``: a small machine's memory and disk handle two builds at a time.
    """
    return f"""\
root = "{root}/data"
[grpc]
  address = ["unix://{root}/buildkitd.sock"]
[otel]
  socketPath = "{root}/traces.sock"
[worker.oci]
  enabled = false
[worker.containerd]
  enabled = true
  address = "{containerd_socket}"
  namespace = "k8s.io"
  networkMode = "host"
  snapshotter = "overlayfs"
  max-parallelism = 2
  gc = true
  reservedSpace = "1GB"
  maxUsedSpace = "{cache_limit // 10**6}MB"
  minFreeSpace = "12GB"
"""


def cni(state: Path) -> str:
    """A bridge with a fixed subnet. Masquerading is in our own nft table, which is easy to remove."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state),
            "ranges": [[{"subnet": POD_SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [bridge]}, indent=1)


def nat_rules() -> str:
    """nft rules that let pods reach addresses outside the node; loading them twice leaves one copy."""
    return f"""\
table ip {NAT_TABLE}
delete table ip {NAT_TABLE}
table ip {NAT_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_SUBNET} oifname != "{BRIDGE}" masquerade
  }}
}}
"""


def kubelet(root: Path, containerd_socket: Path, pki: Path, ports: Ports) -> str:
    """The kubelet, for a machine with cgroup v1 or v2, without systemd, and with a large but shared disk.

    Thresholds are absolute and low: 15 % of a 250 GB disk with 75 GB usable would evict every pod. Images are never
    garbage collected, because there is no registry to pull them from again.
    """
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "port": ports.kubelet,
        "healthzPort": ports.kubelet_health,
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": "/etc/resolv.conf",
        "containerRuntimeEndpoint": f"unix://{containerd_socket}",
        "podLogsDir": f"{root}/pod-logs",
        "volumePluginDir": f"{root}/volume-plugins",
        "imageMinimumGCAge": "24h",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "makeIPTablesUtilChains": False,  # kube-proxy runs on nftables
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",  # how often pods are given what their Secrets hold by now; by default a minute
    }
    return json.dumps(config, indent=1)


def kube_proxy(kubeconfig: Path, ports: Ports) -> str:
    """kube-proxy; conntrack limits are not changed, because a sandbox may not change them."""
    config: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": POD_SUBNET,
        "hostnameOverride": NODE_NAME,
        "healthzBindAddress": f"127.0.0.1:{ports.proxy_health}",
        "metricsBindAddress": f"127.0.0.1:{ports.proxy_metrics}",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return json.dumps(config, indent=1)


def corefile() -> str:
    return f"""\
.:53 {{
    errors
    health :8080
    ready :8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        ttl 5
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . /etc/resolv.conf
    cache 5 {{
        disable denial {CLUSTER_DOMAIN}
    }}
    reload
}}
"""


def system_objects(dns_image: str) -> str:
    """Cluster DNS and RBAC of kube-proxy, kube-router and CoreDNS, for ``kubectl apply``."""
    dns = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    coredns = {"name": "coredns", "namespace": "kube-system"}
    objects = [
        _binding("finetune-kube-proxy", "system:node-proxier", _user("system:kube-proxy")),
        _role(
            "finetune-kube-router",
            (["", "networking.k8s.io", "discovery.k8s.io"], _NETWORK_RESOURCES, ["get", "list", "watch"]),
        ),
        _binding("finetune-kube-router", "finetune-kube-router", _user("system:kube-router")),
        _role(
            "finetune-coredns",
            (["", "discovery.k8s.io"], ["services", "pods", "namespaces", "endpointslices"], ["list", "watch"]),
        ),
        _binding("finetune-coredns", "finetune-coredns", {"kind": "ServiceAccount", **coredns}),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": coredns},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": coredns, "data": {"Corefile": corefile()}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": dns,
            "spec": {
                "clusterIP": DNS_SERVICE_IP,
                "selector": {"k8s-app": "kube-dns"},
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": 53, "protocol": "TCP"},
                ],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {**coredns, "labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
                "template": {"metadata": {"labels": {"k8s-app": "kube-dns"}}, "spec": _dns_pod(dns_image)},
            },
        },
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


_NETWORK_RESOURCES = ["namespaces", "pods", "services", "nodes", "endpoints", "endpointslices", "networkpolicies"]


def _dns_pod(image: str) -> dict[str, Any]:
    def probe(path: str, port: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": port}, "periodSeconds": 2}

    container = {
        "name": "coredns",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "170Mi"}},
        "readinessProbe": probe("/ready", 8181),
        "livenessProbe": {**probe("/health", 8080), "failureThreshold": 30},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    return {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }


def _role(name: str, rule: tuple[list[str], list[str], list[str]]) -> dict[str, Any]:
    groups, resources, verbs = rule
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": groups, "resources": resources, "verbs": verbs}],
    }


def _binding(name: str, role: str, subject: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _user(name: str) -> dict[str, Any]:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}


def kube_router_flags(kubeconfig: Path, ports: Ports) -> tuple[str, ...]:
    """kube-router for NetworkPolicies only; kube-proxy handles Services."""
    return (
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={NODE_NAME}",
        f"--service-cluster-ip-range={SERVICE_SUBNET}",
        f"--health-port={ports.router_health}",
        f"--metrics-port={ports.router_metrics}",
        "--iptables-sync-period=1m",
    )
