#!/bin/bash
# A systemd of its own, on this machine's files: what it writes goes to FOLDER, what it starts stays in its
# namespaces. Usage, as root: systemd_machine.sh FOLDER REPOSITORY VENV; `unshare` is left running.
set -euo pipefail
folder=$1 repository=$2 venv=$3

if [ "${4:-}" != inside ]; then
    cgroups=/sys/fs/cgroup
    [ -d $cgroups/unified ] && hierarchies="$cgroups/unified $cgroups/systemd" || hierarchies=$cgroups
    for hierarchy in $hierarchies; do
        mkdir -p "$hierarchy/${folder##*/}"
        echo $$ >"$hierarchy/${folder##*/}/cgroup.procs"
    done
    exec unshare --mount --pid --fork --uts --ipc --net --cgroup --mount-proc --kill-child \
        bash "$0" "$@" inside
fi

mount --make-rprivate /
mount -t tmpfs tmpfs "$folder/scratch"
for name in etc var opt; do
    mkdir "$folder/scratch/$name" "$folder/scratch/$name.work"
    mount -t overlay overlay /$name \
        -o "lowerdir=/$name,upperdir=$folder/scratch/$name,workdir=$folder/scratch/$name.work"
done

# None of this machine's own units.
kept="$folder/scratch/units"
mkdir "$kept"
for name in sysinit basic shutdown umount final exit network network-online slices; do
    cp "/usr/lib/systemd/system/$name.target" "$kept/"
done
cp /usr/lib/systemd/system/systemd-exit.service "$kept/"
rm -rf /etc/systemd/system/*
mount -t tmpfs tmpfs /usr/lib/systemd/system
cp "$kept"/* /usr/lib/systemd/system/
mount -t tmpfs tmpfs /usr/lib/systemd/system-generators
mount -t tmpfs tmpfs /run

if [ -d /sys/fs/cgroup/unified ]; then
    umount -R /sys/fs/cgroup
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
else
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
ip link set lo up

# Rhizome in /opt/rhizome: this environment, with an interpreter that users other than root may read.
base=$("$venv/bin/python3" -c 'import sys; print(sys.base_prefix)')
mkdir -p /opt/rhizome/bin /opt/python
mount --bind "$base" /opt/python
ln -s "$venv/lib" /opt/rhizome/lib
ln -s /opt/python/bin/python3 /opt/rhizome/bin/python3
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' >/opt/rhizome/pyvenv.cfg
for name in rhizome-engine rhizome-proxy rhizome-gateway; do
    sed '1s|.*|#!/opt/rhizome/bin/python3|' "$venv/bin/$name" >"/opt/rhizome/bin/$name"
    chmod 755 "/opt/rhizome/bin/$name"
done

# As deploy/systemd/README.md says.
cd "$repository/deploy/systemd"
install -m 644 -D rhizome.sysusers.conf /etc/sysusers.d/rhizome.conf
systemd-sysusers rhizome.conf
install -m 644 -D rhizome.tmpfiles.conf /etc/tmpfiles.d/rhizome.conf
systemd-tmpfiles --create rhizome.conf
install -m 644 ./*.service ./*.target ./*.slice /etc/systemd/system/
install -m 640 -g rhizome engine.env.example /etc/rhizome/engine-a.env
install -m 640 -g rhizome proxy.env.example /etc/rhizome/proxy.env
install -m 640 -g rhizome gateway.env.example /etc/rhizome/gateway.env
sed -i "s|^RHIZOME_ENGINE_MODEL=.*|RHIZOME_ENGINE_MODEL=$repository/models/demo|" /etc/rhizome/engine-a.env
sed -i 's|^RHIZOME_PROXY_BACKENDS=.*|RHIZOME_PROXY_BACKENDS=127.0.0.1:50051|' /etc/rhizome/proxy.env

# There is no journal here; and the interpreter may need its own shared library.
mkdir -m 777 "$folder/scratch/logs"
for name in rhizome-engine@ rhizome-proxy rhizome-gateway; do
    mkdir "/etc/systemd/system/$name.service.d"
    cat >"/etc/systemd/system/$name.service.d/machine.conf" <<END
[Service]
StandardOutput=append:$folder/scratch/logs/$name.log
StandardError=inherit
Environment=LD_LIBRARY_PATH=/opt/python/lib
END
done
printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/machine.target
export container=docker
exec /usr/lib/systemd/systemd --system --unit=machine.target --log-target=console --show-status=no
