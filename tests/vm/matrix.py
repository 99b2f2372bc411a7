# SPDX-License-Identifier: Apache-2.0
"""`./dev vm`: the agent's programs on other kernels, in machines that live for a minute.

Each kernel boots an initramfs with Python, the package and the built objects, loads them by the
agent's own loader, and tries: who has a license, who has none, who loses it, and what is counted.
QEMU runs without acceleration, so that it works on any machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.vm import initramfs
from tests.vm.guest import lsm_probe
from tests.vm.guest.kernel_probe import BEGIN, END
from tests.vm.kernels import CPU, KERNELS, Kernel, NoKernel, image, kernel

from licagent.host.posture import kernel_version
from licagent.kernel.hook_model import HookKind
from licagent.kernel.hooks import HOOKS, LSM_HOOKS

PAGE: Final = Path(__file__).parents[2] / "docs" / "kernels.md"
_TABLE_BEGIN: Final = "<!-- coverage: written by ./dev vm --write-docs -->"
_TABLE_END: Final = "<!-- end of coverage -->"
_BOOT_S: Final = 900
_RETVAL: Final = (5, 18)
"""Programs choose the errno since (commit b44123b4a3dc)."""
_DESTROY: Final = (6, 5)
"""bpf_sock_destroy."""
_CPU_TOLERANCE: Final = 0.02
_PAYLOAD: Final = 50_001


def boot(vmlinuz: Path, archive: Path) -> dict[str, Any]:
    """What the machine told. Raises NoKernel when it told nothing."""
    # One thread: under several, QEMU at times runs into code that another processor is patching
    # (int3 in sched_clock_cpu). Two machines at once use two processors as well.
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=single", "-smp", "2", "-cpu", CPU]
    command += ["-m", "1024", "-nographic", "-no-reboot", "-net", "none"]
    command += ["-kernel", str(vmlinuz), "-initrd", str(archive)]
    lsm = "lsm=lockdown,capability,landlock,yama,apparmor,bpf"
    # Linux looks whether its timer ticks (check_timer()), and gives up when an emulator that has
    # to wait for a processor makes none in time.
    command += ["-append", f"console=ttyS0 quiet panic=-1 no_timer_check {lsm}"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BOOT_S, check=False
        )
        output = done.stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
    text = output.decode(errors="replace")
    _, begun, rest = text.partition(BEGIN)
    told, ended, _ = rest.partition(END)
    if not begun or not ended:
        took_s = time.monotonic() - began
        raise NoKernel(f"the machine ended after {took_s:.0f} s, and told only: {text[-2000:]}")
    found: dict[str, Any] = json.loads(told)
    return found


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be on this kernel."""
    for step in ("hooks", "enforce", "meter", "lsm"):
        if "exception" in found[step]:
            return [f"{step}: {found[step]['exception']}"]
    release = kernel_version(found["release"])
    hooks = (*HOOKS, *LSM_HOOKS) if "bpf" in (found["lsm"]["modules"] or ()) else HOOKS
    wrong = [
        f"{hook.name} should load here: {found['hooks'].get(hook.name, 'not tried')}"
        for hook in hooks
        if found["hooks"].get(hook.name, "not tried")
        and hook.kind is not HookKind.INTERFACE
        and release >= kernel_version(hook.kernel)
    ]
    denied = "ENOKEY" if release >= _RETVAL else "EPERM"
    revoked = "EKEYREVOKED" if release >= _RETVAL else "EPERM"
    enforced = found["enforce"]
    wanted: dict[str, Any] = {name: denied for name in enforced if name.startswith("denied")}
    wanted |= {name: "" for name in enforced if name.startswith("licensed")}
    wanted |= {"other port": "", "connect after revocation": revoked, "bytes after revocation": 0}
    wrong += [
        f"{name}: {enforced[name]!r}, expected {value!r}"
        for name, value in wanted.items()
        if enforced[name] != value
    ]
    if release >= _DESTROY and enforced["open socket after revocation"][0] != "ECONNABORTED":
        wrong.append(f"open socket: {enforced['open socket after revocation']}")
    if "guard" in found["lsm"]:
        wrong += lsm_probe.problems(found["lsm"])
    return wrong + _meter_problems(found["meter"])


def _meter_problems(meter: dict[str, Any]) -> list[str]:
    wrong = []
    if meter["failed"]:
        wrong.append(f"the work that was to be measured failed: {meter['failed']}")
    if meter["support"]["work"]:
        measured, reference = meter["cpu_ns"], meter["cpu_reference_ns"]
        if abs(measured - reference) > _CPU_TOLERANCE * reference:
            wrong.append(f"CPU {measured} ns, cpu.stat {reference} ns")
        if meter["processes"] != 1:
            wrong.append(f"{meter['processes']} processes ended instead of 1")
    if meter["support"]["payload"] and (
        meter["tx_payload_bytes"] != _PAYLOAD or meter["rx_payload_bytes"] != _PAYLOAD
    ):
        wrong.append(f"payload {meter['tx_payload_bytes']} / {meter['rx_payload_bytes']}")
    if meter["wire_bytes"] <= _PAYLOAD:
        wrong.append(f"wire bytes {meter['wire_bytes']}")
    return wrong


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The coverage of each kernel, in Markdown."""
    lines = ["| | " + " | ".join(re.split("[-+]", found["release"])[0] for found in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    lines += [
        f"| `{hook.name}` | " + " | ".join(_loads(found, hook.name) for found in rows) + " |"
        for hook in (*HOOKS, *LSM_HOOKS)
    ]
    answers: dict[str, Callable[[dict[str, Any]], str]] = {
        "a refused program sees": lambda found: f"`{found['enforce']['denied tcp4']}`",
        "sockets of a revoked license are closed (else silenced, and closed by netlink)": (
            lambda found: _yes(found["enforce"]["open socket after revocation"][0])
        ),
        "CPU time by the kernel's own meters": lambda found: _yes(
            found["meter"]["support"]["work"]
        ),
        "bytes by the kernel's own meters": lambda found: _yes(found["meter"]["support"]["flows"]),
    }
    for words, answer in answers.items():
        lines.append(f"| {words} | " + " | ".join(answer(found) for found in rows) + " |")
    return "\n".join(lines)


def _loads(found: dict[str, Any], hook: str) -> str:
    return _yes(not found["hooks"].get(hook, "not tried"))


def _yes(is_so: object) -> str:
    return "yes" if is_so else "no"


def write_table(rows: Sequence[dict[str, Any]], page: Path = PAGE) -> None:
    """Put the table into docs/kernels.md, between its marks."""
    text = page.read_text(encoding="utf-8")
    head, begun, rest = text.partition(_TABLE_BEGIN)
    _, ended, tail = rest.partition(_TABLE_END)
    if not begun or not ended:
        raise ValueError(f"{page} has no marks for the table")
    page.write_text(f"{head}{begun}\n{table(rows)}\n{ended}{tail}", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """0 when every kernel did as it should."""
    parser = argparse.ArgumentParser(prog="./dev vm", description=__doc__)
    names = [each.name for each in KERNELS]
    words = f"one of {', '.join(names)}; by default all"
    parser.add_argument("--kernel", action="append", help=words)
    parser.add_argument("--json", type=Path, help="write what the machines told into this file")
    words = "write the coverage table into docs/kernels.md, where all is well"
    parser.add_argument("--write-docs", action="store_true", help=words)
    chosen = parser.parse_args(arguments)
    told: list[tuple[str, dict[str, Any]]] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="licagent-vm-") as folder:
        archive = Path(folder) / "initrd.gz"
        (Path(folder) / "root").mkdir()
        initramfs.build(Path(folder) / "root", Path(__file__).parents[2], archive)
        wanted = []
        for name in chosen.kernel or names:
            try:
                each: Kernel = kernel(name)
                wanted.append((name, image(each)))
            except NoKernel as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed = True
        with ThreadPoolExecutor(max_workers=2) as machines:
            runs = [(name, machines.submit(boot, kept, archive)) for name, kept in wanted]
            for name, run in runs:
                try:
                    found = run.result()
                except NoKernel as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    failed = True
                    continue
                told.append((name, found))
                wrong = problems(found)
                failed = failed or bool(wrong)
                print(f"{found['release']}: {'well' if not wrong else 'NOT WELL'}", flush=True)
                for line in wrong:
                    print(f"  {line}", flush=True)
    if told:
        print(table([found for _name, found in told]))
    if chosen.write_docs and not failed:
        write_table([found for _name, found in told])
    if chosen.json:
        chosen.json.write_text(json.dumps(dict(told), indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
