"""Settings: what all members agreed (`swarm.toml`), what one site decided (`sites/*.toml`), what one run is
(its policy). Read once, frozen, passed as arguments. A combination that cannot work fails here, with the reason.
"""

from swarm.config.consortium import (
    ExternalConfig,
    MemberConfig,
    SwarmConfig,
    check_endpoint,
    check_url,
    load_swarm,
)
from swarm.config.policy import (
    BOUND_RULES,
    CHUNK_RULES,
    EPSILON,
    EQUAL_ONLY,
    MERGE_RULES,
    POLICY_BYTES_MAX,
    SERVER_RULES,
    WEIGHT_RULES,
    Policy,
    load_policy,
)
from swarm.config.proxy import Proxy, proxy_of
from swarm.config.site import LEAK_CHECK, LEAK_CHECK_RESULTS, RelayConfig, RpcConfig, SiteConfig, check_site, load_site
from swarm.config.toml import ENDPOINT_BYTES_MAX, MEMBERS_MAX, NAME_BYTES_MAX

__all__ = [
    "BOUND_RULES",
    "CHUNK_RULES",
    "ENDPOINT_BYTES_MAX",
    "EPSILON",
    "EQUAL_ONLY",
    "LEAK_CHECK",
    "LEAK_CHECK_RESULTS",
    "MEMBERS_MAX",
    "MERGE_RULES",
    "NAME_BYTES_MAX",
    "POLICY_BYTES_MAX",
    "SERVER_RULES",
    "WEIGHT_RULES",
    "ExternalConfig",
    "MemberConfig",
    "Policy",
    "Proxy",
    "RelayConfig",
    "RpcConfig",
    "SiteConfig",
    "SwarmConfig",
    "check_endpoint",
    "check_site",
    "check_url",
    "load_policy",
    "load_site",
    "load_swarm",
    "proxy_of",
]
