#!/bin/sh
# Everything a fresh Debian 12 needs to test and show mirrorha: packages by apt-get, a virtual environment in .venv.
# Run by make; says what it does, and is quick when nothing is missing.
set -eu
cd "$(dirname "$0")"

# package:proof, where the proof is a file that the package brings
packages="
corosync:/usr/sbin/corosync
pacemaker:/usr/sbin/pacemakerd
pacemaker-cli-utils:/usr/sbin/crm_mon
resource-agents:/usr/lib/ocf/resource.d/heartbeat/IPaddr2
crmsh:/usr/sbin/crm
pcs:/usr/sbin/pcs
libxml2-utils:/usr/bin/xmllint
nbdkit:/usr/bin/nbdkit
libnbd-bin:/usr/bin/nbdfuse
fuse3:/usr/bin/fusermount3
nftables:/usr/sbin/nft
iproute2:/usr/sbin/ip
iputils-ping:/usr/bin/ping
iputils-arping:/usr/bin/arping
tcpdump:/usr/bin/tcpdump
e2fsprogs:/usr/sbin/mkfs.ext4
util-linux:/usr/bin/unshare
procps:/usr/bin/ps
man-db:/usr/bin/man
curl:/usr/bin/curl
strace:/usr/bin/strace
psmisc:/usr/bin/fuser
kmod:/usr/bin/kmod
vagrant:/usr/bin/vagrant
drbd-utils:/usr/sbin/drbdmeta
fio:/usr/bin/fio
qemu-utils:/usr/bin/qemu-io
qemu-system-common:/usr/bin/qemu-storage-daemon
python3-libnbd:/usr/lib/python3/dist-packages/nbd.py
xfsprogs:/usr/sbin/mkfs.xfs
hostname:/usr/bin/hostname
sqlite3:/usr/bin/sqlite3
postgresql-15:/usr/lib/postgresql/15/bin/postgres
"
# /var/lock leads there; in a container with a bare /run, drbd-utils neither unpacks nor runs without it
[ "$(id -u)" != 0 ] || mkdir -p /run/lock
missing=""
/usr/bin/python3 -c "import ensurepip, venv" 2>/dev/null || missing=" python3-venv"
for entry in $packages; do
    [ -e "${entry#*:}" ] || [ -e "${entry#*:/usr}" ] || missing="$missing ${entry%%:*}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: these packages are missing and only root can install them: apt-get install$missing" >&2
        exit 1
    fi
    echo "setup: installing$missing"
    # a cluster daemon that starts by itself on somebody's machine would be a bad surprise
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ] || grep -q 'setup of mirrorha' $policy; then
        trap 'rm -f $policy' EXIT
        trap 'exit 130' INT TERM HUP  # sh runs no EXIT trap when a signal ends it
        printf '#!/bin/sh\n# setup of mirrorha, while it installs\nexit 101\n' > $policy
        chmod 755 $policy
    fi
    # the tests want PostgreSQL's programs, not a database of its own
    case "$missing " in
    *" postgresql-15 "*)
        mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/mirrorha.conf ;;
    esac
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } > "$log" 2>&1
    then
        tail -n 20 "$log" >&2
        echo "setup: apt-get failed; its whole output is in $log" >&2
        exit 1
    fi
    rm -f "$log"
    # nor may what we installed for its tools alone start at the next boot
    for unit in corosync:corosync.service pacemaker:pacemaker.service pcs:pcsd.service pcs:pcsd-ruby.service postgresql-15:postgresql.service; do
        case "$missing " in
        *" ${unit%%:*} "*) systemctl disable --quiet "${unit#*:}" 2>/dev/null || : ;;
        esac
    done
fi

stamp=.venv/.installed
if [ ! -e $stamp ] || [ setup.cfg -nt $stamp ] || [ pyproject.toml -nt $stamp ]; then
    echo "setup: virtual environment in .venv ($(/usr/bin/python3 --version))"
    # pip comes last into a new environment: without it, one was interrupted
    .venv/bin/python -m pip --version >/dev/null 2>&1 || /usr/bin/python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
    touch $stamp
fi
