#!/usr/bin/env bash
# The one door. It sets the project up in .venv beside this file, where that is needed, and hands over to the command line:
#   bash launch.sh recipes/NAME.yaml [a.b=c ...]     bash launch.sh test [pytest arguments]     bash launch.sh --help
# An active environment (venv or conda) that already fits is used as it is. PYTHON=/path/to/python names the interpreter.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
log=$venv/setup.log
unfinished=$venv/setup.unfinished

say() { printf 'launch.sh: %s\n' "$*" >&2; }

# Print what keeps interpreter $1 from running the project with extra $2: a direct dependency that is missing or out of range.
misfit() {
    "$1" -I - "$root" "$2" <<'PY' 2>/dev/null || echo "it cannot be checked"
import sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    print("it lacks packaging")
    sys.exit()

project = tomllib.loads((Path(sys.argv[1]) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for need in map(Requirement, project["dependencies"] + project["optional-dependencies"][sys.argv[2]]):
    try:
        found = version(need.name)
    except PackageNotFoundError:
        print(f"it lacks {need.name}")
        break
    if not need.specifier.contains(found, prereleases=True):
        print(f"it has {need.name} {found}, not {need.specifier}")
        break
PY
}

# The state that a finished set-up was made for; asks no interpreter, so that a start costs nothing.
wanted() { printf '%s ' "$root"; cat "$root/pyproject.toml" "$root/constraints.txt" "$venv/pyvenv.cfg" | cksum; }

# Whether $1, the set-up or an extra, was brought in that state.
stamped() { [ -f "$venv/$1.stamp" ] && [ "$(cat "$venv/$1.stamp")" = "$(wanted)" ]; }

is_set_up() { [ -x "$venv/bin/python" ] && [ ! -e "$unfinished" ] && stamped setup; }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13 python; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null; then
            printf '%s' "$name"
            return
        fi
    done
    say "no Python 3.11 or newer with venv was found. Install one (Debian: apt install python3 python3-venv)," \
        "or name one: PYTHON=/path/to/python bash launch.sh ..."
    return 1
}

# Install the project with the extras $1 into .venv.
pip_install() {
    PIP_USER=0 "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -c "$root/constraints.txt" -e "$root[$1]" >>"$log" 2>&1 </dev/null
}

install() {
    local python
    if [ -e "$unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        rm -rf "$venv"
        mkdir -p "$venv"
        touch "$unfinished"
        "$python" -m venv "$venv" >"$log" 2>&1 || return 1
    fi
    touch "$unfinished"
    pip_install test || return 1
    wanted >"$venv/setup.stamp"
    rm "$unfinished"
}

set_up() {
    say "setting up .venv; the first time this takes some minutes (log: $log)"
    install || failed "the set-up"
    say "set up in $SECONDS s"
}

failed() {
    say "$1 failed. The end of $log:"
    tail -n 20 "$log" >&2
    exit 1
}

one_at_a_time() { ( # the lock is released when the descriptor closes, however it ends
    if command -v flock >/dev/null; then flock 9; fi
    "$@"
) 9<"$root/pyproject.toml"; }

set_up_once() { is_set_up || set_up; }

# The commands play, serve and docs need the extra of their name; it comes at their first use.
add_extra_once() {
    if stamped "$1"; then return; fi
    if [ -n "$(misfit "$venv/bin/python" "$1")" ]; then
        say "installing what $1 needs; this takes a minute or so, once (log: $log)"
        pip_install "$1" || failed "installing what $1 needs"
    fi
    wanted >"$venv/$1.stamp"
}

extra_of() {
    local each
    for each in "$@"; do if [[ $each == -h || $each == --help ]]; then return; fi; done
    case "${1:-}" in play | serve | docs) printf '%s' "$1" ;; esac
}

choose_python() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} reason extra
    if [ -n "$active" ] && [ "$active" != "$venv" ] && [ -x "$active/bin/python" ]; then
        reason=$(misfit "$active/bin/python" test)
        if [ -z "$reason" ]; then
            python=$active/bin/python
            return
        fi
        say "the active environment $active does not fit ($reason); using .venv"
    fi
    is_set_up || one_at_a_time set_up_once
    extra=$(extra_of "$@")
    [ -z "$extra" ] || stamped "$extra" || one_at_a_time add_extra_once "$extra"
    python=$venv/bin/python
}

choose_python "$@"

# Two spinning OpenMP threads on a small shared machine are several times slower than one; larger machines keep torch's choice.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
if [ "$cores" -le 4 ]; then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; fi

export STEERING_FACTORY_COMMAND="bash launch.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -P -m factory.cli "$@"
