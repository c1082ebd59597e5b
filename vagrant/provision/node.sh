#!/bin/sh
# Makes a fresh Debian 12 machine a node of the laboratory. Needs a Debian mirror and nothing else; may be run again.
#
# From the Vagrantfile: LAB_HOSTS (lines for /etc/hosts), LAB_CLUSTER (yes: a cluster node), LAB_DISK (the name under
# which the backing disk shall be found, or empty), LAB_SERIAL (lines "device baud").
set -eu

prefix=/opt/mirrorha
packages="iproute2 iputils-ping iputils-arping tcpdump curl nftables procps psmisc"
if [ "$LAB_CLUSTER" = yes ]; then
    packages="$packages corosync pacemaker pacemaker-cli-utils resource-agents crmsh libxml2-utils fuse3 libnbd-bin
        nbd-client e2fsprogs xfsprogs python3-venv python3-setuptools python3-wheel python3-jinja2 python3-lxml
        python3-psutil python3-pyroute2"
fi

# The cluster starts when a test says so: a fresh node must not join with Debian's example configuration.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $packages

sed -i '/ # laboratory$/d' /etc/hosts
# a name that means 127.0.1.1 on its own node would make the daemons listen there
sed -i "/^127\.0\.1\.1[[:space:]].*$(hostname)/d" /etc/hosts
printf '%s\n' "$LAB_HOSTS" | sed 's/$/ # laboratory/' >> /etc/hosts

if [ -n "$LAB_DISK" ] && [ ! -b "$LAB_DISK" ]; then
    # Not every hypervisor has virtio disks. The first disk that is not the system's gets the promised name.
    system=$(lsblk --noheadings --output PKNAME "$(findmnt --noheadings --output SOURCE /)" | head -n 1)
    found=$(lsblk --noheadings --nodeps --output NAME,TYPE |
        awk -v system="$system" '$2 == "disk" && $1 != system { print $1; exit }')
    if [ -z "$found" ]; then
        echo "node $(hostname): no second disk; give the machine one, as the Vagrantfile does" >&2
        exit 1
    fi
    printf 'KERNEL=="%s", SYMLINK+="%s"\n' "$found" "${LAB_DISK#/dev/}" > /etc/udev/rules.d/70-laboratory-disk.rules
    udevadm control --reload
    udevadm trigger --settle "/dev/$found"
fi

printf '%s\n' "$LAB_SERIAL" | while read -r device baud; do
    if [ -n "$device" ]; then
        # no login prompt on the heartbeat's line
        systemctl mask "serial-getty@${device#/dev/}.service"
        stty --file "$device" raw -echo "$baud"
    fi
done

if [ "$LAB_CLUSTER" = yes ]; then
    systemctl disable corosync pacemaker
    # Debian's own libraries, so that nothing has to come from elsewhere.
    /usr/bin/python3 -m venv --system-site-packages $prefix/venv
    build=$(mktemp --directory)
    cp -r $prefix/source/. "$build" # the build writes beside its sources, and those belong to the checkout
    $prefix/venv/bin/pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps \
        --force-reinstall "$build"
    rm -r "$build"
    for command in $prefix/venv/bin/mirrorha-* $prefix/venv/bin/rcc $prefix/venv/bin/mirroradm; do
        [ ! -e "$command" ] || ln -sf "$command" /usr/local/sbin/
    done
    $prefix/venv/bin/mirrorha-install-agents
fi
echo "node $(hostname) is ready"
