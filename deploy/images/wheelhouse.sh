#!/usr/bin/env bash
# Collect every wheel that the images install, for builds without a network: WHEELS=DIR deploy/images/build.sh
#
#     deploy/images/wheelhouse.sh DIR [gateway] [proxy] [engine]
#
# Run it with the Python of the base image: wheels are for one version. PYTHON says which, pip's own configuration where
# packages come from.
set -euo pipefail
into=$(realpath -m "${1:?usage: wheelhouse.sh DIR [SERVICE...]}")
shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
services=("$@")
if ((${#services[@]} == 0)); then
    services=(gateway proxy engine)
fi
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT
requirements=()
for service in "${services[@]}"; do
    "$python" deploy/images/dependencies.py "services/$service" --into "$lists/$service"
    requirements+=(-r "$lists/$service/third-party.txt")
done
mkdir -p "$into"
"$python" -m pip wheel --quiet --wheel-dir "$into" -c requirements/constraints-cpu.txt hatchling mypy setuptools "${requirements[@]}"
