"""The version and build of this program."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

try:
    from ztunnel._version import __version__
except ImportError:
    # Only an installation writes the file; this checkout was never installed.
    __version__ = "0.0.0+unknown"

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """The facts of a build, under the Rust ztunnel's names.

    rust_version: the version of Python; the field is expected by readers.
    """

    version: str
    git_revision: str
    rust_version: str
    build_profile: str
    build_status: str
    istio_version: str
    crypto_provider: str

    def __str__(self) -> str:
        return (
            f'version.BuildInfo{{Version:"{self.version}", GitRevision:"{self.git_revision}", '
            f'RustVersion:"{self.rust_version}", BuildProfile:"{self.build_profile}", '
            f'BuildStatus:"{self.build_status}", IstioVersion:"{self.istio_version}", '
            f'CryptoProvider:"{self.crypto_provider}"}}'
        )

    def view(self) -> dict[str, str]:
        """Returns the ``version`` key of the admin dump."""
        return {
            "buildProfile": self.build_profile,
            "buildStatus": self.build_status,
            "cryptoProvider": self.crypto_provider,
            "gitRevision": self.git_revision,
            "istioVersion": self.istio_version,
            "rustVersion": self.rust_version,
            "version": self.version,
        }


def build_info(istio_version: str = "unknown") -> BuildInfo:
    """Returns this build's facts. ``istio_version`` is the value of ``ISTIO_META_ISTIO_VERSION``."""
    return BuildInfo(
        version=__version__,
        git_revision=git_revision(_ROOT),
        rust_version=f"{platform.python_implementation()} {platform.python_version()}",
        build_profile="release",
        build_status="Clean",
        istio_version=istio_version or "unknown",
        crypto_provider="tls-openssl",
    )


def git_revision(root: Path) -> str:
    """Returns the commit of a checkout, ``unknown`` where there is none, as in an installed package."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        loose = git / reference
        if loose.exists():
            return loose.read_text(encoding="ascii").strip()
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            revision, _, name = line.partition(" ")
            if name == reference:
                return revision
    except (OSError, UnicodeDecodeError):
        pass
    return "unknown"
