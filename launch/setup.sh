# shellcheck shell=bash
# shellcheck disable=SC2034 # the arrays are for those who source this
# Sourced by launch/quickstart, tests/run and the other scripts: packages, and how mpirun behaves on any machine.

# Names in Debian 12, Ubuntu 22.04 and newer.
build_packages=(
  g++ cmake ninja-build pkg-config
  libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libboost-dev libpcre2-dev libutf8proc-dev libxxhash-dev libssl-dev
  openmpi-bin libopenmpi-dev libucx-dev
)
test_packages=(
  libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev libboost-context-dev python3-venv git openssl iproute2
  prometheus json-schema-test-suite fonts-dejavu-core
)
# Ubuntu has Chromium as a snap only; the tests of the pages are skipped without it.
! grep -qx 'ID=debian' /etc/os-release 2>/dev/null || test_packages+=(chromium)

# Root may start ranks, ranks may outnumber cores, and a waiting rank yields its core to the others. Without the last,
# exchanges between oversubscribed ranks take milliseconds instead of microseconds.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# install_packages NAME…: installs those that are missing; does nothing, and needs no root, when none is.
install_packages() {
  local name missing=() as_root=() log
  for name in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || fail "this needs Debian or Ubuntu; elsewhere install the like of: ${missing[*]}"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "not root and no sudo; ask someone who is to run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  log=$(mktemp)
  # Expanded this way because an empty array is an unset variable to older shells.
  if ! { ${as_root[@]+"${as_root[@]}"} apt-get update -qq &&
         ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
           -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get failed; all of its output is in $log"
  fi
  rm -f "$log"
}

# build PRESET [TARGET…]: configures quietly, builds with progress.
build() {
  local preset=$1 log target=()
  shift
  (($# == 0)) || target=(--target "$@")
  say "building ($preset)"
  log=$(mktemp)
  cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; fail "cmake could not configure"; }
  rm -f "$log"
  cmake --build --preset "$preset" ${target[@]+"${target[@]}"}
}
