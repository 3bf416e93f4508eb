#!/usr/bin/env bash
# An authority of one's own and what it signs, to try compose.tls.yaml with; real deployments bring real certificates.
#
#     ./make_certificates.sh [DIR] [NAME...]      # ./tls; localhost unless names or addresses are given
#
#     ca.pem, ca.key                     the authority: what clients believe
#     client.pem, client.key             who shows these may speak gRPC
#     server/server.pem, server.key      what nginx shows
#     server/clients.pem                 whose certificates may speak gRPC
set -euo pipefail
umask 077

into=${1:-$(dirname "$0")/tls}
shift || true
names=("$@")
if ((${#names[@]} == 0)); then
    names=(localhost 127.0.0.1)
fi
alternatives=
for name in "${names[@]}"; do
    kind=DNS
    [[ $name =~ ^[0-9.]+$ || $name == *:* ]] && kind=IP
    alternatives+=${alternatives:+,}$kind:$name
done
mkdir -p "$into/server"
cd "$into"

# issue FILE SUBJECT DAYS [OPTION...]
issue() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$3" -subj "/CN=$2" \
        -keyout "$1.key" -out "$1.pem" "${@:4}" 2> /dev/null
}
issue ca "Rhizome compose" 3650 -addext keyUsage=critical,keyCertSign,cRLSign
issue server/server "${names[0]}" 365 -CA ca.pem -CAkey ca.key -addext "subjectAltName=$alternatives" \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth
issue client "client" 365 -CA ca.pem -CAkey ca.key \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=clientAuth
cp ca.pem server/clients.pem
chmod 0644 ./*.pem server/*.pem
chmod 0755 . server
# nginx runs as 65532 unless TLS_UID says otherwise; only root can hand a key to somebody else.
if [[ $(id -u) == 0 ]]; then
    chown 65532:65532 server/server.key
else
    echo "set TLS_UID=$(id -u) TLS_GID=$(id -g), so that nginx may read $PWD/server/server.key"
fi
echo "made $PWD/server/server.pem for $alternatives"
