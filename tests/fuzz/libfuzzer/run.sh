#!/bin/sh
# Fuzzes by coverage, with the stable compiler: run.sh TARGET|all SECONDS
# (The first build compiles every dependency with coverage: minutes.) Found inputs are kept in target/libfuzzer/corpus, crashes in target/libfuzzer/crashes.
set -eu
wanted=${1:?a target, or all}
seconds=${2:?seconds for each target}
root=$(cd "$(dirname "$0")/../../.." && pwd)
out=$root/target/libfuzzer
here=$root/tests/fuzz/libfuzzer
host=$(rustc -vV | sed -n 's/^host: //p')
# The versions of the program itself; what only this package needs is added.
cp "$root/Cargo.lock" "$here/Cargo.lock"
# What libFuzzer needs of the compiler; with a target named, build scripts are compiled without.
RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares" \
  cargo build --quiet --release -j2 --manifest-path "$here/Cargo.toml" --target-dir "$out" --target "$host"
program=$out/$host/release/zeblit-libfuzzer
names=$wanted
if [ "$wanted" = all ]; then
  names=$("$program" 2>&1 | sed -n 's/^FUZZ_TARGET is one of: //p')
fi
mkdir -p "$out/crashes"
crashes=0
executions=0
targets=0
for name in $names; do
  FUZZ_TARGET=$name FUZZ_BEGIN=$out/corpus/$name "$program" >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; exit 1; }
  targets=$((targets + 1))
  # shellcheck disable=SC2086 -- more options of libFuzzer, e.g. FUZZ_OPTIONS=-jobs=4
  if ! FUZZ_TARGET=$name "$program" ${FUZZ_OPTIONS:-} -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -dict="$out/corpus/words.dict" \
    -artifact_prefix="$out/crashes/$name-" -print_final_stats=1 "$out/corpus/$name" >"$out/$name.log" 2>&1; then
    crashes=$((crashes + 1))
    tail -n 40 "$out/$name.log"
  fi
  done_now=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$name.log")
  executions=$((executions + ${done_now:-0}))
done
echo "fuzz-long: $targets targets, $executions executions by coverage, $crashes crashes"
[ "$crashes" = 0 ] && [ "$targets" -gt 0 ]
