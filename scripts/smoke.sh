#!/usr/bin/env bash
# Starts the built server, asks it what a newcomer would, and checks the answers. Usage: scripts/smoke.sh [path of the binary]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-target/debug/equipoise}
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

"$binary" serve --listen 127.0.0.1:0 --state-dir "$work/state" --log-format json 2>"$work/log" &
server=$!
address=
for _ in $(seq 300); do
  address=$(sed -n 's/.*"address":"\([^"]*\)".*/\1/p' "$work/log" | head -n 1)
  if [ -n "$address" ] && curl -fs "http://$address/readyz" >/dev/null; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$work/log"; exit 1; }
  sleep 0.1
done
url="http://$address"
token=$(cat "$work/state/admin-token")
image=models/icons30/test/printer/00.png

expect() { # expect NAME PATTERN: standard input must match
  local got
  got=$(cat)
  if ! grep -Eq -- "$2" <<<"$got"; then printf 'FAILED: %s\nexpected /%s/ in:\n%s\n' "$1" "$2" "$got"; exit 1; fi
  echo "$1" >>"$work/passed" # a pipe's end is a process of its own: a variable would be lost
}
curl -fsS "$url/livez" | expect "alive" '"live"'
curl -fsS "$url/v1/models" | expect "the model is listed" '"name":"icons30"'
curl -fsS --data-binary "@$image" "$url/v1/classify?head=joint,tau,crt,lws,ncm&top_k=3" | expect "five heads answer" '"head":"joint".*"head":"tau".*"head":"crt".*"head":"lws".*"head":"ncm"'
curl -fsS -F "a=@$image" -F "b=@$image" "$url/v1/models/icons30/features" | expect "features" '"feature_dim":96'
curl -fsS -X PATCH -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -d '{"tau": 0.9}' \
  "$url/admin/v1/models/icons30/heads/tau" | expect "tau is changed" '"tau":0.9'
curl -fsS --data-binary "@$image" "$url/v1/classify?head=tau" | expect "the next answer has it" '"tau":0.9'
curl -sS -o /dev/null -w '%{http_code}' -X PATCH -d '{}' "$url/admin/v1/models/icons30/heads/tau" | expect "the door is shut" '^401$'
curl -sS --data-binary "not an image" "$url/v1/classify" | expect "what is no image is told so" '"code":"invalid_image"'
curl -fsS "$url/metrics" | expect "metrics" 'equipoise_head_tau\{head="tau",model="icons30"\} 0.9'
curl -fsS "$url/docs" | expect "the page" '<!doctype html>'
curl -fsS "$url/openapi.json" | expect "the API document" '"openapi"'
"$binary" classify "$image" --json | expect "the command line answers too" '"model": ?"icons30"'
kill -TERM "$server"
wait "$server"
echo "a clean exit on SIGTERM" >>"$work/passed"
echo "smoke: $(wc -l <"$work/passed" | tr -d " ") passed, 0 failed"
