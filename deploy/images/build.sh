#!/usr/bin/env bash
# Build the images of all services, or of some.
#
#     deploy/images/build.sh [gateway] [proxy] [engine-cpu] [engine-cuda]     # the first three without arguments
#
#     VERSION          tag; the gateway's version
#     PREFIX           before the names: rhizome
#     BASE_IMAGE       what they are based on: python:3.12-slim
#     BUILD_IMAGE      where they are built, with pip and a compiler: python:3.12
#     PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_TRUSTED_HOST    where pip finds packages
#     WHEELS           a folder with all wheels (wheelhouse.sh): nothing else is asked then
#     WHEELS_PORT      where builds reach it on loopback: 50099
#     CUDA_IMAGE, FLASH_ATTN_VERSION, CUDA_ARCHITECTURES, TORCH_VERSION, MAX_JOBS    for engine-cuda
#     DOCKER           the client: docker
set -euo pipefail
cd "$(dirname "$0")/../.."

docker=${DOCKER:-docker}
prefix=${PREFIX:-rhizome}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' services/gateway/pyproject.toml)}
images=("$@")
if ((${#images[@]} == 0)); then
    images=(gateway proxy engine-cpu)
fi

arguments=(--build-arg "VERSION=$version")
# A commit's own date, not today's: the same commit gives the same labels.
if revision=$(git rev-parse HEAD 2> /dev/null); then
    arguments+=(--build-arg "REVISION=$revision" --build-arg "CREATED=$(git log -1 --format=%cI)")
fi
for name in BASE_IMAGE BUILD_IMAGE; do
    [[ -n ${!name:-} ]] && arguments+=(--build-arg "$name=${!name}")
done
if [[ -n ${WHEELS:-} ]]; then
    port=${WHEELS_PORT:-50099}
    python3 -m http.server --bind 127.0.0.1 --directory "$WHEELS" "$port" > /dev/null 2>&1 &
    server=$!
    trap 'kill "$server"' EXIT
    for _ in $(seq 100); do
        (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null && break
        kill -0 "$server" 2> /dev/null || { echo "build.sh: port $port is taken, set WHEELS_PORT" >&2; trap - EXIT; exit 1; }
        sleep 0.05
    done
    arguments+=(--network host --build-arg PIP_NO_INDEX=1 --build-arg "PIP_FIND_LINKS=http://127.0.0.1:$port/")
else
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_TRUSTED_HOST; do
        [[ -n ${!name:-} ]] && arguments+=(--build-arg "$name=${!name}")
    done
fi

for image in "${images[@]}"; do
    own=()
    case $image in
        gateway | proxy) file=services/$image/Dockerfile tag=$prefix/$image:$version ;;
        engine-cpu) file=services/engine/Dockerfile tag=$prefix/engine:$version-cpu ;;
        engine-cuda)
            file=services/engine/Dockerfile.cuda tag=$prefix/engine:$version-cuda
            for name in CUDA_IMAGE FLASH_ATTN_VERSION CUDA_ARCHITECTURES TORCH_VERSION MAX_JOBS; do
                [[ -n ${!name:-} ]] && own+=(--build-arg "$name=${!name}")
            done
            ;;
        *)
            echo "build.sh: there is no image $image; there are gateway, proxy, engine-cpu, engine-cuda" >&2
            exit 2
            ;;
    esac
    "$docker" build -f "$file" -t "$tag" "${arguments[@]}" "${own[@]}" .
    echo "$tag: $("$docker" image inspect --format '{{.Size}}' "$tag" | awk '{printf "%.0f MB", $1 / 1e6}')"
done
