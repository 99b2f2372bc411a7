# SPDX-License-Identifier: Apache-2.0
"""Documents in YAML and TOML: what is taken, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from licplane.cli.declared import FILE_MAX_BYTES, read_declared
from licplane.errors import ExitCode, PlaneError

TOML = """
[[binding]]
name = "etl"
license = "acme"
selectors = ["unix:user:etl"]

[[resource]]
name = "db"
kind = "network"
destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"] }]
"""
YAML = """
license:
- id: acme
  expires_at: 2100-01-01T00:00:00Z
  hours: 22:30
  country: no
---
resource:
  - {name: web, kind: service, ports: ["443"]}
"""


def test_files_and_folders(tmp_path: Path) -> None:
    inner = tmp_path / "policy" / "more"
    inner.mkdir(parents=True)
    (tmp_path / "policy" / "a.toml").write_text(TOML)
    (inner / "b.yaml").write_text(YAML)
    (inner / ".hidden.yaml").write_text("resource: 5")
    (inner / "README.md").write_text("not a document")
    found = read_declared([tmp_path / "policy"])
    assert [(one.kind, one.name) for one in found] == [
        ("resource", "db"),
        ("resource", "web"),
        ("binding", "etl"),
        ("license", "acme"),
    ]
    license = found[-1].document
    assert license["expires_at"] == "2100-01-01T00:00:00Z"
    assert (license["hours"], license["country"]) == ("22:30", "no")
    assert "b.yaml (document 2): resource[0]" in found[1].source


def test_a_toml_time_is_what_the_yaml_text_is(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[[license]]\nid = "a"\nexpires_at = 2100-01-01T01:00:00+01:00\n')
    assert read_declared([file])[0].document["expires_at"] == "2100-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("suffix", "text", "words"),
    [
        (".yaml", "resource:\n- name: a\n  name: b\n", "a.yaml:3:3: the key 'name' stands there"),
        (".yaml", "resource: []\nresource: []\n", "stands there twice"),
        (".yaml", "resource: &x []\nbinding: *x\n", "aliases"),
        (".yaml", "resource: " + "[" * 100, "nested too deeply"),
        (".yaml", "- name: a", "the top is no table"),
        (".yaml", "resources:\n- name: a", "did you mean resource?"),
        (".yaml", "<<: {resource: []}", "'<<' is unknown"),
        (".yaml", "resource: {name: a}", "resource is no list"),
        (".yaml", "resource: [a]", "resource[0] is no table"),
        (".yaml", "binding:\n- license: a\n", "binding[0] has no name"),
        (".yaml", "license:\n- id: a\n  5: b\n", "the key 5"),
        (".yaml", "license:\n- id: a\n  grace: 1.5\n", "license[0].grace is 1.5"),
        (".yaml", "license: [!!python/object/apply:os.system [id]]", "tag"),
        (".yaml", "license:\n- {id: a}\n- {id: a}\n", "license a is declared already"),
        (".json", '{"resource": [{"name": "a", "name": "b"}]}', "stands there twice"),
        (".toml", '[[resource]]\nname = "a"\nname = "b"\n', "not TOML"),
        (".toml", '[resource]\nname = "a"\n', "write [[resource]]"),
        (".toml", '[[license]]\nid = "a"\nat = 2100-01-01\n', "times with their zone"),
    ],
)
def test_what_is_refused(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_text(text)
    with pytest.raises(PlaneError) as caught:
        read_declared([file])
    assert caught.value.code is ExitCode.REFUSED
    assert words.lower() in str(caught.value).lower()
    assert str(file) in str(caught.value)


def test_too_large_not_text_absent_and_empty(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, words, code in (
        (large, "64 MiB", ExitCode.REFUSED),
        (binary, "not UTF-8", ExitCode.REFUSED),
        (tmp_path / "absent", "no file or folder", ExitCode.NOT_FOUND),
        (empty, "has no .yaml", ExitCode.NOT_FOUND),
    ):
        with pytest.raises(PlaneError, match=words) as caught:
            read_declared([path])
        assert caught.value.code is code


def test_numbers_and_truth_are_those_of_json(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("license:\n- {id: a, n: -12, o: 007, t: true, y: yes, z: ~, e: , h: 0x1f}\n")
    document = read_declared([file])[0].document
    assert document == {
        "id": "a",
        "n": -12,
        "o": "007",
        "t": True,
        "y": "yes",
        "z": None,
        "e": None,
        "h": "0x1f",
    }
