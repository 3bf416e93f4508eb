#!/usr/bin/env bash
# Base images for machines that reach no registry: Debian by debootstrap, as slim as the official slim images.
#
#     deploy/images/make_base.sh [DIR]      # as root; DIR is for scratch, some 1 GB
#
#     rhizome-base:python    Python                     BASE_IMAGE of all services
#     rhizome-base:build     with pip, a compiler and Python's headers    BUILD_IMAGE of all services
#     rhizome-base:nginx     nginx                      NGINX_IMAGE of deploy/compose
#
# Images that are there already stay as they are. SUITE (bookworm) and MIRROR (debootstrap's own) say where packages come
# from, DOCKER which client imports.
set -euo pipefail

suite=${SUITE:-bookworm}
docker=${DOCKER:-docker}
scratch=${1:-}
if [[ $(id -u) != 0 ]]; then
    echo "make_base.sh: debootstrap needs root" >&2
    exit 1
fi
for program in debootstrap "$docker"; do
    if ! command -v "$program" > /dev/null; then
        echo "make_base.sh: $program is missing" >&2
        exit 1
    fi
done
if [[ -z $scratch ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
fi
mkdir -p "$scratch"

# What nobody reads in a container is not unpacked in the first place.
slim() {
    cat > "$1/etc/dpkg/dpkg.cfg.d/slim" <<'CONF'
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
CONF
    echo 'Acquire::Languages "none";' > "$1/etc/apt/apt.conf.d/slim"
    find "$1/usr/share/doc" -type f ! -name copyright -delete
    rm -rf "$1"/usr/share/{man,info,locale,lintian}/*
}

add() {
    chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}" \
        > "$scratch/apt.log" 2>&1 || { tail -n 20 "$scratch/apt.log" >&2; exit 1; }
}

# Without caches and logs the tree goes to the daemon; its size is told.
import() {
    rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/cache/debconf/*-old \
        "$1"/var/log/*.log "$1"/var/log/apt
    find "$1" -xdev -type d -name __pycache__ -prune -exec rm -rf {} +
    tar -C "$1" --numeric-owner --exclude=./var/lib/apt/lists/\* --exclude=./dev/\* -c . \
        | "$docker" import "${@:3}" - "$2" > /dev/null
    echo "$2: $("$docker" image inspect --format '{{.Size}}' "$2" | awk '{printf "%.0f MB", $1 / 1e6}')"
}

missing() {
    ! "$docker" image inspect "rhizome-base:$1" > /dev/null 2>&1
}

if ! missing nginx && ! missing python && ! missing build; then
    exit 0
fi
root=$scratch/root
rm -rf "$root" "$scratch/nginx"
debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" ${MIRROR:+"$MIRROR"} > "$scratch/debootstrap.log" \
    || { tail -n 20 "$scratch/debootstrap.log" >&2; exit 1; }
slim "$root"
chroot "$root" apt-get update -qq

if missing nginx; then
    cp -a "$root" "$scratch/nginx"
    add "$scratch/nginx" nginx-light
    import "$scratch/nginx" rhizome-base:nginx --change 'CMD ["nginx", "-g", "daemon off;"]'
    rm -rf "$scratch/nginx"
fi
add "$root" python3
if missing python; then
    import "$root" rhizome-base:python --change 'CMD ["python3"]'
fi
if missing build; then
    add "$root" python3-venv python3-dev g++
    import "$root" rhizome-base:build --change 'CMD ["python3"]'
fi
rm -rf "$root"
