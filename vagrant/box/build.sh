#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a Debian 12 box for vagrant-libvirt from this machine's own apt sources, for where no box
# can be fetched: box/build.sh FILE.box; vagrant box add --name licagent/debian-12 FILE.box
# Needs root, mmdebstrap, extlinux, qemu-utils. It takes some minutes.
set -euo pipefail

BOX=$(realpath -m "${1:?usage: build.sh FILE.box}")
readonly BOX
readonly SUITE=bookworm
readonly DISK_GIB=8
# The key that every Vagrant knows; `vagrant up` puts a new one in its place at the first start.
keys=(/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub
    /opt/vagrant/embedded/gems/gems/vagrant-*/keys/vagrant.pub)
for key in "${keys[@]}" ''; do [[ ! -f $key ]] || break; done
[[ -n $key ]] || { echo 'vagrant is not installed: its public key is needed' >&2; exit 1; }

work=$(mktemp -d)
mounted=''
finish() {
    [[ -z $mounted ]] || umount "$mounted" || true
    rm -rf "$work"
}
trap finish EXIT

readonly ROOT=$work/root
readonly PACKAGES=(
    linux-image-amd64 systemd-sysv systemd-timesyncd udev dbus libpam-systemd kmod e2fsprogs
    openssh-server sudo python3 python3-apt ca-certificates rsync
    iproute2 iputils-ping curl netcat-openbsd less procps
    libbpf1 libelf1
)
printf -v include '%s,' "${PACKAGES[@]}"
mapfile -t sources < <(grep -lsw "$SUITE" /etc/apt/sources.list \
    /etc/apt/sources.list.d/*.{list,sources} || true)
mmdebstrap --mode=root --variant=minbase --format=directory --quiet \
    --aptopt='Acquire::Languages "none"' --include="${include%,}" \
    "$SUITE" "$ROOT" "${sources[@]}"

chroot "$ROOT" useradd --create-home --shell /bin/bash vagrant
install -d -m 0700 -o 1000 -g 1000 "$ROOT/home/vagrant/.ssh"
install -m 0600 -o 1000 -g 1000 "$key" "$ROOT/home/vagrant/.ssh/authorized_keys"
install -m 0440 /dev/stdin "$ROOT/etc/sudoers.d/vagrant" <<<'vagrant ALL=(ALL) NOPASSWD: ALL'
echo debian-12 >"$ROOT/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian-12\n' >"$ROOT/etc/hosts"
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >"$ROOT/etc/fstab"
# The first one is Vagrant's own network; it configures the others itself. A lease for those, in the
# meantime, could be the address of another machine.
cat >"$ROOT/etc/systemd/network/80-dhcp.network" <<'TEXT'
[Match]
Name=eth0
[Network]
DHCP=ipv4
TEXT
systemctl --root="$ROOT" --quiet enable systemd-networkd.service ssh.service
: >"$ROOT/etc/machine-id" # each machine makes its own
rm -f "$ROOT"/etc/ssh/ssh_host_*
cat >"$ROOT/etc/systemd/system/ssh-host-keys.service" <<'TEXT'
[Unit]
Description=Make the SSH host keys of a new machine
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
TEXT
systemctl --root="$ROOT" --quiet enable ssh-host-keys.service

# One file system on the whole disk: extlinux boots it from its own first sector.
mkdir -p "$ROOT/boot/extlinux"
cat >"$ROOT/boot/extlinux/extlinux.conf" <<'TEXT'
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd.img
  APPEND root=LABEL=root ro console=tty0 console=ttyS0 net.ifnames=0
TEXT
truncate -s "${DISK_GIB}G" "$work/disk"
mkfs.ext4 -q -F -L root -d "$ROOT" "$work/disk"
mounted=$work/mounted
mkdir "$mounted"
mount -o loop "$work/disk" "$mounted"
extlinux --install "$mounted/boot/extlinux"
umount "$mounted"
mounted=''
qemu-img convert -c -O qcow2 "$work/disk" "$work/box.img"

printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' "$DISK_GIB" \
    >"$work/metadata.json"
printf 'Vagrant.configure("2") { |config| config.vm.guest = :debian }\n' >"$work/Vagrantfile"
tar -C "$work" -czf "$BOX" metadata.json Vagrantfile box.img
printf 'built %s\n' "$BOX" >&2
