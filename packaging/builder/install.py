# SPDX-License-Identifier: Apache-2.0
"""Puts one package's files below a root: debian/rules and the RPM's %install both call it.

    python3.11 packaging/builder/install.py licagent --root DIR --wheels DIR --objects DIR
        --version V --units /lib/systemd/system --zsh /usr/share/zsh/vendor-completions

So both packages have one layout. It needs the standard library alone.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from environment import ENVIRONMENTS, make, record

_SOURCE = Path(__file__).resolve().parents[2]


def main() -> None:
    """Install one package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--objects", type=Path, help="the built BPF objects, for licagent")
    parser.add_argument("--version", required=True)
    parser.add_argument("--units", type=Path, required=True, help="folder of systemd units")
    parser.add_argument("--zsh", type=Path, required=True, help="folder of zsh completions")
    arguments = parser.parse_args()
    name: str = arguments.package
    root: Path = arguments.root
    make(ENVIRONMENTS[name], _SOURCE, arguments.wheels.resolve(), root.resolve(), arguments.version)

    def put(files: Iterable[Path], folder: Path | str, *, rename: str = "") -> None:
        target = root / str(folder).lstrip("/")
        for file in files:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / (rename or file.name))

    systemd = _SOURCE / "systemd"
    units = [*systemd.glob(f"{name}*.service"), *systemd.glob(f"{name}*.socket")]
    put(sorted(units), arguments.units)
    put([systemd / f"{name}.sysusers"], "usr/lib/sysusers.d", rename=f"{name}.conf")
    put([systemd / f"{name}.tmpfiles"], "usr/lib/tmpfiles.d", rename=f"{name}.conf")
    put(sorted(systemd.glob(f"*-{name}.preset")), "usr/lib/systemd/system-preset")

    packaging = _SOURCE / "packaging"
    put([packaging / "man" / f"{name}.1"], "usr/share/man/man1")
    completions = packaging / "completions"
    put([completions / f"{name}.bash"], "usr/share/bash-completion/completions", rename=name)
    put([completions / f"_{name}"], arguments.zsh)
    put([completions / f"{name}.fish"], "usr/share/fish/vendor_completions.d")

    settings = packaging / "etc" / name
    for file in sorted(path for path in settings.rglob("*") if path.is_file()):
        put([file], Path("etc", name) / file.relative_to(settings).parent)

    _put_documentation(root / "usr/share/doc" / name)
    objects = [_put_bpf(arguments.objects, root)] if name == "licagent" else []
    record(ENVIRONMENTS[name], root.resolve(), arguments.version, objects)


_LINKED = (
    *("STYLE.md", "CHANGELOG.md", "systemd/README.md", "packaging/README.md", "vagrant/README.md"),
    *(
        "packaging/ansible/*.md",
        "tests/bench/README.md",
        "tests/vm/README.md",
        "vagrant/catalog.yml",
    ),
)
"""What the pages link to outside of docs/."""


def _put_documentation(target: Path) -> None:
    """README, the pages, alert rules and dashboards as they stand in the clone, so that links
    between them lead on."""
    docs = _SOURCE / "docs"
    pages = [path for path in docs.rglob("*") if path.suffix in {".md", ".svg", ".json"}]
    for pattern in (*_LINKED, "packaging/prometheus/*.yml", "packaging/grafana/*.json"):
        found = list(_SOURCE.glob(pattern))
        if not found:
            raise SystemExit(f"{pattern}: not among the files that the package is made from")
        pages += found
    for path in sorted([_SOURCE / "README.md", *pages]):
        place = target / path.relative_to(_SOURCE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _put_bpf(objects: Path, root: Path) -> Path:
    """The objects, the sources for the bcc loader, and both where the loader looks for them.

    Returns the objects' folder.
    """
    built = root / "usr/lib/licagent/bpf"
    built.mkdir(parents=True)
    for path in sorted(objects.glob("*.bpf.o")):
        shutil.copyfile(path, built / path.name)
    bpf = _SOURCE / "bpf"
    sources = root / "usr/share/licagent/bpf"
    for path in sorted([*bpf.rglob("*.c"), *bpf.rglob("*.h")]):
        target = sources / path.relative_to(bpf)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    kernel = root / "usr/lib/licagent/site/licagent/kernel"
    (kernel / "bpf_objects").symlink_to("../../../bpf")
    (kernel / "bpf_sources").symlink_to("../../../../../share/licagent/bpf")
    return built.resolve()


if __name__ == "__main__":
    main()
