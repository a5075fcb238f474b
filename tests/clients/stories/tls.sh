#!/bin/bash
# Bazel builds with a cache that lets in only who shows a certificate, while the farm's own certificate changes under it.
# It is the cache over HTTPS, since the Bazel that Debian packages has no ALPN, without which gRPC does not run over TLS.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "$0")/../lib.sh"

tls=$STORY/tls

# issue NAME [DAYS [EXTENSION]]   a key, and a certificate of the authority for it.
issue() {
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$tls/$1.key" -out "$tls/$1.csr" 2>> "$STORY/openssl.log"
  openssl x509 -req -in "$tls/$1.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial -days "${2:-1}" \
    -extfile <(echo "${3:-subjectAltName=IP:127.0.0.1}") -out "$tls/$1.crt" 2>> "$STORY/openssl.log"
}

# install_pair NAME   in the way of tools that rename: the certificate first, the key after it.
install_pair() {
  local kind
  for kind in crt key; do
    cp "$tls/$1.$kind" "$tls/next.$kind"
    mv "$tls/next.$kind" "$tls/server.$kind"
  done
}

# change_certificates COUNT   one after the other, each when the farm has taken up the one before.
change_certificates() {
  local number before
  for number in $(seq "$1"); do
    before=$(metric croft_tls_certificate_expiry_timestamp_seconds)
    issue "server$number" "$((number + 1))" # the metric tells them apart by their ends
    install_pair "server$number"
    wait_until 30 has_changed "$before" || { echo "certificate $number is not taken up"; return 1; }
  done
}

has_changed() {
  [ "$(metric croft_tls_certificate_expiry_timestamp_seconds)" != "$1" ]
}

mkdir "$tls"
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=authority -keyout "$tls/ca.key" -out "$tls/ca.crt" 2> "$STORY/openssl.log"
issue first
issue developer 1 "subjectAltName=URI:spiffe://farm.example/developer"
install_pair first
open_bazel7
farm_start "$STORY/data" CROFT_WORKER__ROOT="$SID" \
  CROFT_PUBLIC__TLS__CERTIFICATE="$tls/server.crt" CROFT_PUBLIC__TLS__KEY="$tls/server.key" \
  CROFT_PUBLIC__TLS__CLIENTS__AUTHORITIES="$tls/ca.crt"
flags=("--remote_cache=https://127.0.0.1:$PUBLIC" --remote_download_all "--tls_certificate=$tls/ca.crt")
bazel stranger build //gen:kibibyte "${flags[@]}" || true
[ "$(metric croft_tls_handshake_failures_total)" -gt 0 ] || fail "a Bazel without a certificate was let in"
close_bazel stranger
flags+=("--tls_client_certificate=$tls/developer.crt" "--tls_client_key=$tls/developer.key")
change_certificates 5 > "$STORY/changes" 2>&1 &
changing=$!
for base in cold warm; do
  bazel "$base" build //gen/... //tree/... "${flags[@]}" --execution_log_json_file="$STORY/$base.json" ||
    fail "the $base build failed: see $base.log"
  close_bazel "$base"
done
wait "$changing" || fail "$(tail -n 1 "$STORY/changes")"
expect_spawns "$STORY/warm.json" --only "remote cache hit" --at-least 15
farm_stop
