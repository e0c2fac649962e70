#!/usr/bin/env bash
# Holds a GPU against the CPU: the same answers and features, also where memory is short; how fast, what a batch of another size, a
# change of tau and a fit take, and what it holds. Prints one table.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'EOF'
Usage: scripts/gpu-check.sh [options]

  --device DEVICE    what is held against the CPU: cuda (the default), cuda:N, or cpu for a dry run without a GPU
  --model DIR        a model directory; may be given several times [default: models/icons30]
  --concurrency N    connections of the load [default: 64]
  --requests N       requests of each measurement, of one image each [default: 2000]
  --batches "N ..."  values of --max-batch-size to measure [default: 1 8 32 64]
  --fit-rows N       rows of 2048 features to fit, 0 for no fit [default: 115846, as ImageNet-LT: 1 GB of disk]
  --tolerance X      largest difference of a probability, or of a feature beside the largest one, that is no failure
                     [default: 0.001; TF32 and float16 need more]

Images are those in DIR/test, else those of models/icons30. Needs bash, curl, awk and python3. The binary is EQUIPOISE, else
a release build, made if cargo is there. ONNX Runtime is ORT_DYLIB_PATH, else it is fetched into .work/gpu-check/ with the
CUDA libraries (some GB); TensorRT is not, and has to be on the loader's path. Ends with 1 if an answer or a fit differs.
EOF
}
die() { echo "gpu-check: $*" >&2; exit 2; }

device=cuda models=() concurrency=64 requests=2000 batches="1 8 32 64" fit_rows=115846 tolerance=0.001
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage; exit ;;
    --device) device=${2:?} ;;
    --model) models+=("${2:?}") ;;
    --concurrency) concurrency=${2:?} ;;
    --requests) requests=${2:?} ;;
    --batches) batches=${2:?} ;;
    --fit-rows) fit_rows=${2:?} ;;
    --tolerance) tolerance=${2:?} ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
  shift 2
done
[ ${#models[@]} -gt 0 ] || models=(models/icons30)
for tool in curl awk python3; do command -v "$tool" >/dev/null || die "$tool is not there"; done

mkdir -p .work/gpu-check
work=$(mktemp -d "$PWD/.work/gpu-check/run.XXXXXX")
server=
stop() { if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" 2>/dev/null; fi; server=; return 0; }
trap 'stop; rm -rf "$work"' EXIT
failures=0
rows=$work/table
row() { printf '| %s | %s | %s |\n' "$1" "$2" "$3" | tee -a "$rows" >&2; } # row WHERE WHAT VALUE
fail() { echo "FAILED: $*" >&2; failures=$((failures + 1)); }

# The program and ONNX Runtime
binary=${EQUIPOISE:-target/release/equipoise}
if [ -z "${EQUIPOISE:-}" ] && command -v cargo >/dev/null; then cargo build --release --locked --bin equipoise >&2; fi
[ -x "$binary" ] || die "$binary is not there: build it with cargo build --release, or set EQUIPOISE"

if [ -z "${ORT_DYLIB_PATH:-}" ]; then
  version=$(awk '$1 == "ORT_VERSION" { print $3 }' Makefile)
  if [ "$device" = cpu ]; then
    [ -d .ort/onnxruntime/capi ] || make ort >&2
    ORT_DYLIB_PATH=$PWD/.ort/onnxruntime/capi
  else
    ort=$PWD/.work/gpu-check/onnxruntime-gpu-$version
    if [ ! -e "$ort/ready" ]; then
      rm -rf "$ort" # what an interrupted fetch has left
      echo "fetching onnxruntime-gpu $version and the CUDA libraries into $ort" >&2
      platforms=()
      for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_$(uname -m)"); done
      python3 -m pip install --quiet --target "$ort" --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --platform "manylinux2014_$(uname -m)" "onnxruntime-gpu[cuda,cudnn]==$version" ||
        die "it could not be fetched: set ORT_DYLIB_PATH to the folder of a libonnxruntime with CUDA"
      touch "$ort/ready"
    fi
    ORT_DYLIB_PATH=$ort/onnxruntime/capi
  fi
fi
export ORT_DYLIB_PATH
# CUDA and cuDNN of Python's packages, those beside ONNX Runtime and those of this Python: the loader looks for neither.
site=$ORT_DYLIB_PATH
[ -d "$site" ] || site=$(dirname "$site")
site=$(dirname "$(dirname "$site")")
libraries=$(PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} python3 -c '
import importlib.util, os
spec = importlib.util.find_spec("nvidia")
roots = spec.submodule_search_locations if spec else ()
folders = [os.path.join(root, package, "lib") for root in roots for package in ("cu13", "cudnn")]
print(":".join(filter(os.path.isdir, folders)))')
[ -z "$libraries" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
gpu="none: $device in the GPU's place" driver=none
if [ "$device" != cpu ]; then
  index=0
  case $device in cuda:*) index=${device#cuda:} ;; esac
  if command -v nvidia-smi >/dev/null; then
    gpu=$(nvidia-smi --id="$index" --query-gpu=name,memory.total --format=csv,noheader)
    driver=$(nvidia-smi --id="$index" --query-gpu=driver_version --format=csv,noheader)
  else
    gpu="unknown, nvidia-smi is not there" driver=unknown
  fi
fi

# What is done with a server
start() { # start DEVICE MODEL FLAGS...: sets server, url and token
  try_start "$@" || die "the server did not start on $1"
}
try_start() { # the same, and fails if it does not start
  stop
  local state=$work/state
  rm -rf "$state"
  "$binary" serve "$2" --device "$1" --listen 127.0.0.1:0 --state-dir "$state" --log-format json "${@:3}" 2>"$work/log" &
  server=$!
  for _ in $(seq 18000); do # TensorRT may build for half an hour
    url=$(sed -n 's/.*"address":"\([^"]*\)".*/http:\/\/\1/p' "$work/log" | head -n 1)
    if [ -n "$url" ] && curl -fs "$url/readyz" >/dev/null; then
      token=$(cat "$state/admin-token")
      return
    fi
    kill -0 "$server" 2>/dev/null || { tail -n 5 "$work/log" >&2; server=; return 1; }
    sleep 0.1
  done
  die "the server is not ready after half an hour"
}
metric() { # metric NAME: the sum of a metric's samples that begin like this, 0 without any
  curl -fsS "$url/metrics" | awk -v name="$1" 'index($0, name) == 1 { n += $2 } END { printf "%.0f\n", n }'
}
held() { metric "equipoise_device_memory_bytes{kind=\"$1\""; } # held KIND: bytes on the GPU
transfers() { # transfers URL N OUT: a curl configuration of N requests, of the images in turn; OUT is a prefix, or empty
  awk -v url="$1" -v n="$2" -v out="$3" '
    { image[NR] = $0 }
    END {
      for (i = 0; i < n; i++) {
        if (i) print "next"
        printf "silent\nshow-error\nurl = \"%s\"\ndata-binary = \"@%s\"\n", url, image[i % NR + 1]
        printf "header = \"content-type: application/octet-stream\"\n"
        printf "output = \"%s\"\n", out == "" ? "/dev/null" : out i
        printf "write-out = \"%%{http_code} %%{time_total}\\n\"\n"
      }
    }' "$images"
}
send() { # send CONFIG [N]: runs it with so many connections, and prints a line of status and seconds for each request
  curl --no-progress-meter --parallel --parallel-max "${2:-$concurrency}" --config "$1"
}
quantiles() { # lines of status and seconds, sorted here: p50 and p99 in milliseconds
  sort -k2,2g | awk '$1 !~ /^2/ { bad++ } { t[NR] = $2 * 1000 }
    END { if (bad) print bad " requests failed"; else printf "p50 %.2f ms, p99 %.2f ms", t[int((NR - 1) * 0.5) + 1], t[int((NR - 1) * 0.99) + 1] }'
}
measure() { # measure WHERE WHAT [N]: images a second and latencies of the server that runs, by N connections
  local begin end connections=${3:-$concurrency}
  transfers "$url/v1/classify?top_k=5" "$((requests / 10 + concurrency))" "" >"$work/warm"
  transfers "$url/v1/classify?top_k=5" "$requests" "" >"$work/load"
  send "$work/warm" "$connections" >/dev/null
  begin=$(date +%s.%N)
  send "$work/load" "$connections" >"$work/times"
  end=$(date +%s.%N)
  row "$1" "$2" "$(awk -v n="$requests" -v s="$begin" -v e="$end" 'BEGIN { printf "%.0f images/s", n / (e - s) }'), $(quantiles <"$work/times")"
}

ask() { # ask SIDE: all heads with every class, and the features, of all images. Concurrent, so that batches form
  local what
  rm -f "$work"/{classify,features}."$1".*
  for what in "classify?head=$heads&top_k=$classes" features; do
    transfers "$url/v1/models/$name/$what" "$n_images" "$work/${what%%\?*}.$1." >"$work/load"
    send "$work/load" >"$work/times"
    if grep -qv '^2' "$work/times"; then fail "$name, ${what%%\?*} on $1: $(quantiles <"$work/times")"; fi
  done
}
compare='
import json, sys
work, side, n, tolerance = *sys.argv[1:3], int(sys.argv[3]), float(sys.argv[4])
load = lambda what, side, i: json.load(open(f"{work}/{what}.{side}.{i}"))
is_number = lambda values: all(x == x for x in values)
largest, same, difference, feature = {}, {}, 0, 0
for i in range(n):
    both = [load("classify", side, i) for side in ("cpu", side)]
    for a, b in zip(*(answer["images"][0]["results"] for answer in both)):
        p, q = ({x["class"]: x["probability"] for x in result["predictions"]} for result in (a, b))
        head = a["head"]
        differences = [abs(p.get(c, 0) - q.get(c, 0)) for c in p.keys() | q.keys()]
        largest[head] = max(largest.get(head, 0), max(differences) if is_number(differences) else float("inf"))
        same[head] = same.get(head, 0) + (a["predictions"][0]["class"] == b["predictions"][0]["class"])
    a, b = (load("features", side, i)["features"][0] for side in ("cpu", side))
    differences = [abs(x - y) for x, y in zip(a, b, strict=True)]
    difference = max(difference, max(differences) if is_number(differences) else float("inf"))
    feature = max(feature, max(map(abs, a)))
for head in sorted(largest):
    print(f"{head}\tprobabilities within {largest[head]:.2e}, {same[head]} of {n} with the same best class")
print(f"features\twithin {difference:.2e}, the largest is {feature:.2e}")
sys.exit(any(found > tolerance for found in largest.values()) or difference > tolerance * feature)
'
compare() { # compare SIDE: its answers beside those of the CPU, a line for each head and one for the features
  python3 -c "$compare" "$work" "$1" "$n_images" "$tolerance" >"$work/compared" ||
    fail "$name on $1: an answer differs by more than $tolerance, or there is none"
}

# What a convolution pays for another shape than the last time, without a server: ONNX Runtime alone, by its Python package.
change='
import sys, time
import numpy, onnxruntime
path, device = sys.argv[1:3]
cuda = {"device_id": device[5:] or "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
providers = ["CPUExecutionProvider"] if device == "cpu" else [("CUDAExecutionProvider", cuda)]
session = onnxruntime.InferenceSession(path, providers=providers)
if session.get_providers()[0].startswith("CPU") != (device == "cpu"):
    sys.exit("the package runs the model on the CPU")
image = session.get_inputs()[0]
if isinstance(image.shape[0], int):
    sys.exit("the model fixes the size of a batch")
sides = [side if isinstance(side, int) else 224 for side in image.shape[2:]]
batches = [numpy.zeros((n, 3, *sides), numpy.float32) for n in (4, 8, 16)]
def milliseconds(order):
    start = time.perf_counter()
    for batch in order:
        session.run(None, {image.name: batch})
    return (time.perf_counter() - start) * 1000 / len(order)
grouped = [batch for batch in batches for _ in range(10)]
milliseconds(grouped)
in_order, changing = min(milliseconds(grouped) for _ in range(3)), min(milliseconds(batches * 10) for _ in range(3))
print(f"{in_order:.2f} ms a batch in order, {changing:.2f} ms changing each time")
'

for model in "${models[@]}"; do
  images=$work/images
  from=$model/test
  [ -d "$from" ] || from=models/icons30/test
  find "$PWD/${from#"$PWD"/}" -type f \( -name '*.png' -o -name '*.jpg' -o -name '*.jpeg' -o -name '*.webp' \) 2>/dev/null |
    sort >"$images" || true
  n_images=$(wc -l <"$images")
  [ "$n_images" -gt 0 ] || die "no image in $from"

  # All heads on all images, and the features, on both devices.
  for side in cpu device; do
    start "$([ $side = cpu ] && echo cpu || echo "$device")" "$model"
    curl -fsS "$url/v1/models" >"$work/models.json"
    read -r name provider classes heads tau < <(python3 -c '
import json, sys
model = json.load(open(sys.argv[1]))["models"][0]
heads = {head["head"]: head["kind"] for head in model["heads"]}
tau = [head for head, kind in heads.items() if kind == "tau_norm"] + ["-"]
print(model["name"], model["provider"], model["classes"], ",".join(heads), tau[0])' "$work/models.json")
    ask $side
  done
  [ "$device" = cpu ] || [ "$provider" != CPUExecutionProvider ] || fail "$name runs on $provider"
  row "$name" "provider" "$provider"
  compare device
  while IFS=$'\t' read -r head result; do row "$name" "$head beside the CPU" "$result"; done <"$work/compared"

  # A change of tau, one after the other.
  if [ "$tau" != - ]; then
    for step in $(seq 0 49); do
      curl -sS -o /dev/null -w '%{http_code} %{time_total}\n' -X PATCH -H "Authorization: Bearer $token" \
        -H 'Content-Type: application/json' -d "{\"tau\": 0.$((step % 10))}" "$url/admin/v1/models/$name/heads/$tau"
    done >"$work/times"
    row "$name" "PATCH of tau, with a new connection" "$(quantiles <"$work/times")"
  fi

  start cpu "$model"
  measure "$name" "cpu, $concurrency connections"
  for batch in $batches; do
    start "$device" "$model" --max-batch-size "$batch"
    measure "$name" "$device, $concurrency connections, batches of at most $batch"
    out_of_memory=$(metric equipoise_out_of_memory_total)
    [ "$out_of_memory" = 0 ] || row "$name" "batches that did not fit" "$out_of_memory"
    if [ "$provider" != CPUExecutionProvider ]; then
      row "$name" "GPU memory of its sessions, batches of at most $batch" "$(held in_use) bytes in use, $(held reserved) reserved"
      [ "$(held reserved)" -gt 0 ] || fail "$name: the gauge equipoise_device_memory_bytes tells nothing"
    fi
  done

  # Batches that change their size: few connections make batches of one, then of several, and so on.
  start "$device" "$model"
  for connections in 1 2 4 8; do measure "$name" "$device, connections: $connections" "$connections"; done
  backbone=$model/$(sed -n 's/^backbone *= *"\(.*\)".*/\1/p' "$model/model.toml")
  stop
  for path in "$site${PYTHONPATH:+:$PYTHONPATH}" "${PYTHONPATH:-}"; do # the package that was fetched, else this Python's own
    changes=$(PYTHONPATH=$path python3 -c "$change" "$backbone" "$device" 2>"$work/log") && break
    changes="not measured: $(tail -n 1 "$work/log")"
  done
  row "$name" "$device, batches of 4, 8 and 16 in ONNX Runtime alone" "$changes"

  # Halves: a limit at which single images fit and the largest batch does not. It holds for each session; one is for single images.
  if [ "$provider" = CUDAExecutionProvider ]; then
    largest=$(tr ' ' '\n' <<<"$batches" | sort -g | tail -n 1)
    start "$device" "$model" --max-batch-size 1
    of_one=$(held reserved)
    start "$device" "$model" --max-batch-size "$largest"
    of_batch=$(($(held reserved) - of_one))
    limit=$((of_one + (of_batch - of_one) / 4))
    if [ "$of_batch" -lt $((3 * of_one)) ]; then
      row "$name" "batches in halves" "not tried: $of_one bytes for one image, $of_batch for $largest"
    elif ! try_start "$device" "$model" --max-batch-size "$largest" --cuda-memory-limit-bytes "$limit"; then
      fail "$name does not start with a limit of $limit bytes"
    else
      ask limited
      compare limited
      out_of_memory=$(metric equipoise_out_of_memory_total)
      row "$name" "a limit of $limit bytes, batches of at most $largest" "$out_of_memory did not fit; $(tail -n 1 "$work/compared" | tr '\t' ' ')"
      [ "$out_of_memory" -gt 0 ] || fail "$name: a limit of $limit bytes makes no halves"
    fi
  else
    row "$name" "batches in halves" "not tried: no limit bounds $provider"
  fi
  stop
  row "$name" "share of time in copies" "not measured: ONNX Runtime's phases do not tell copies from kernels (nsys profile does)"
done

# A fit. 1000 classes with a long tail of imbalance 256. Each row is noise in which one place, its class's own, holds a pattern.
generate='
import array, json, random, struct, sys
path, n_rows, dim, n_classes = sys.argv[1], int(sys.argv[2]), 2048, 1000
random.seed(1)
shares = [256 ** (-c / (n_classes - 1)) for c in range(n_classes)]
labels = [c for c in range(n_classes) for _ in range(max(3, round(n_rows * shares[c] / sum(shares))))]
random.shuffle(labels)
pool = array.array("f", (max(0.0, random.gauss(0.0, 1.0)) for _ in range(1 << 20))).tobytes()
marks = [array.array("f", (random.random() * 2 for _ in range(64))).tobytes() for _ in range(n_classes)]
n = len(labels)
header = json.dumps({"features": {"dtype": "F32", "shape": [n, dim], "data_offsets": [0, n * dim * 4]},
                     "labels": {"dtype": "I64", "shape": [n], "data_offsets": [n * dim * 4, n * dim * 4 + n * 8]}}).encode()
header += b" " * (-len(header) % 8)
with open(path, "wb") as out:
    out.write(struct.pack("<Q", len(header)) + header)
    for label in labels:
        start = random.randrange((1 << 20) - dim) * 4
        place = label * 7919 % (dim - 64) * 4
        row = pool[start:start + dim * 4]
        out.write(row[:place] + marks[label] + row[place + 256:])
    out.write(array.array("q", labels).tobytes())
'
if [ "$fit_rows" != 0 ]; then
  python3 -c "$generate" "$work/fit.safetensors" "$fit_rows"
  accuracies=()
  for side in cpu "$device"; do
    for method in ncm crt; do
      params=()
      [ "$method" = ncm ] || params=(--param epochs=2)
      "$binary" fit --features "$work/fit.safetensors" --method "$method" "${params[@]}" --holdout 0.05 --device "$side" --json \
        --output "$work/head.safetensors" >"$work/fit.json" 2>"$work/log" || { tail -n 3 "$work/log" >&2; fail "$method on $side"; continue; }
      read -r seconds accuracy < <(python3 -c '
import json, sys
answer = json.load(open(sys.argv[1]))
print(answer["timing_s"]["fit"], answer["report"]["macro"])' "$work/fit.json")
      row "fit" "$method of $fit_rows rows on $side" "$(printf '%.2f s, macro accuracy %.4f' "$seconds" "$accuracy")"
      accuracies+=("$accuracy")
    done
  done
  if [ ${#accuracies[@]} = 4 ]; then
    awk -v a="${accuracies[0]}" -v b="${accuracies[1]}" -v c="${accuracies[2]}" -v d="${accuracies[3]}" \
      'BEGIN { exit !((a - c) ^ 2 <= 1e-4 && (b - d) ^ 2 <= 1e-4) }' || fail "a fit's accuracy differs by more than 0.01"
  fi
fi

printf '\nGPU: %s\ndriver: %s\n\n| where | what | result |\n|---|---|---|\n' "$gpu" "$driver"
cat "$rows"
printf '\n%s\n' "$([ "$failures" = 0 ] && echo "correct" || echo "$failures FAILED")"
[ "$failures" = 0 ]
