"""Write what a service is made of as CycloneDX JSON, checked against its schema.

    python scripts/sbom.py rhizome-gateway rhizome-proxy rhizome-engine --folder build/sbom
    python scripts/sbom.py rhizome-gateway --root /tmp/unpacked-image --folder build/sbom

The first takes the closure of what a distribution asks for from this environment. The second describes an
image: everything under its site-packages, and Debian's packages where it has dpkg's list. To unpack one:

    docker create --name once IMAGE && docker export once | tar -x -C /tmp/unpacked-image; docker rm once
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "lock-dev.txt"
PAGE = ROOT / "services" / "gateway" / "ui" / "package.json"
WITH_PAGE = "rhizome-gateway"
_BUNDLED = ("preact", "@preact/signals", "@preact/signals-core")
"""npm packages that are in the page; the others of its package.json only build it."""
_LONGEST_LICENSE = 120


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("services", nargs="+", help="distributions, such as rhizome-gateway")
    parser.add_argument("--root", type=Path, help="root of an unpacked image")
    parser.add_argument("--folder", type=Path, default=Path("build/sbom"), help="where NAME.cdx.json goes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.services:
        bom = of_image(name, arguments.root) if arguments.root else of_environment(name)
        target = arguments.folder / f"{name}.cdx.json"
        target.write_text(checked(bom))
        sys.stderr.write(f"{target}: {len(bom.components)} components\n")


def of_environment(name: str) -> Bom:
    """A distribution of this environment and everything that it asks for.

    Raises:
        SystemExit: it is not installed, or something that it needs is not.
    """
    found: dict[str, Distribution] = {}
    _collect(Requirement(name), found)
    return _bom(name, found)


def of_image(name: str, root: Path) -> Bom:
    """Everything in an image.

    Raises:
        SystemExit: there is no such distribution under `root`.
    """
    paths = [str(path) for path in root.glob("**/site-packages")] + [
        str(p) for p in root.glob("**/dist-packages")
    ]
    found = {_key(one.name): one for one in importlib.metadata.distributions(path=paths)}
    if _key(name) not in found:
        sys.exit(f"{name} is not under {root}; its site-packages are {paths or 'missing'}")
    bom = _bom(name, found)
    for package, version in debian_packages(root / "var/lib/dpkg/status"):
        purl = PackageURL("deb", "debian", package, version)
        bom.components.add(_component(package, version, purl))
    return bom


def checked(bom: Bom) -> str:
    """The document, indented.

    Raises:
        SystemExit: it does not conform to CycloneDX's schema.
    """
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        sys.exit(f"the document does not conform to CycloneDX 1.6: {error}")
    return text + "\n"


def debian_packages(status: Path) -> Iterator[tuple[str, str]]:
    """Names and versions of the packages that dpkg has installed; none where it has no list."""
    text = status.read_text(errors="replace") if status.is_file() else ""
    for entry in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"]


def _collect(asked: Requirement, found: dict[str, Distribution]) -> None:
    """Add a distribution and what it needs on this machine, with the extras that were asked for."""
    try:
        one = importlib.metadata.distribution(asked.name)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{asked.name} is not installed; run `make setup` first")
    known = found.setdefault(_key(asked.name), one)
    if known is not one and not asked.extras:
        return
    for text in one.requires or []:
        needed = Requirement(text)
        extras = [{"extra": extra} for extra in (*asked.extras, "")]
        wanted = needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras)
        if wanted and (_key(needed.name) not in found or needed.extras):
            _collect(needed, found)


def _bom(name: str, found: dict[str, Distribution]) -> Bom:
    bom, hashes = Bom(), _hashes()
    of_interest = dict(sorted(found.items()))
    itself = of_interest.pop(_key(name))
    bom.metadata.component = application = _of(itself, hashes, ComponentType.APPLICATION)
    for one in of_interest.values():
        bom.components.add(_of(one, hashes))
    if name == WITH_PAGE:
        for component in _of_the_page():
            bom.components.add(component)
    bom.register_dependency(application, bom.components)
    return bom


def _of(
    one: Distribution, hashes: dict[str, list[str]], kind: ComponentType = ComponentType.LIBRARY
) -> Component:
    name = _key(one.name)
    component = _component(one.name, one.version, PackageURL("pypi", None, name, one.version), kind)
    metadata = one.metadata
    expression = metadata.get("License-Expression")
    free_text = (metadata.get("License") or "").strip()
    if expression:
        component.licenses.add(LicenseExpression(expression))
    elif free_text and len(free_text) < _LONGEST_LICENSE:
        component.licenses.add(DisjunctiveLicense(name=free_text.splitlines()[0]))
    known = hashes.get(f"{name}=={one.version}", [])
    if len(known) == 1:  # of several files nobody knows which one was installed
        component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=known[0]))
    return component


def _component(
    name: str, version: str, purl: PackageURL, kind: ComponentType = ComponentType.LIBRARY
) -> Component:
    return Component(name=name, version=version, type=kind, purl=purl, bom_ref=purl.to_string())


def _of_the_page() -> Iterable[Component]:
    """What was compiled into the gateway's page."""
    package = json.loads(PAGE.read_text())
    versions = package["devDependencies"] | package["overrides"]
    for name in _BUNDLED:
        namespace, _, plain = name.rpartition("/")
        yield _component(name, versions[name], PackageURL("npm", namespace or None, plain, versions[name]))


def _hashes() -> dict[str, list[str]]:
    """The hashes of each release in the lock."""
    found = {}
    for entry in re.split(r"\n(?=\S)", LOCK.read_text()):
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry):
            found[f"{_key(match[1])}=={match[2]}"] = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
    return found


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
